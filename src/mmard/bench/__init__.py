"""What training and attacking cost on this machine, and what the engine changes in what is computed.

sizes.py      which steps are timed, on which networks: one table for a CPU, one for a GPU
timing.py     clocks, variants in alternation, medians with their spread, the allowance of time
ceilings.py   how fast this machine multiplies and copies
counting.py   operations and bytes of a step, and memory
variants.py   one step, made in the ways that are compared
steps.py      methods and the price of MMARD
around.py     attacks, AutoAttack, batches
agreement.py  the engine's x_adv, losses and gradients beside those of the plain path
subjects.py   the trained networks that this is done on
measure.py    all of it, as one record
records.py    files: JSON and the chart
chart.py      the chart
"""
