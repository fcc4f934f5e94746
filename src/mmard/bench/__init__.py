"""What training and attacking cost on this machine, and what the engine changes in what is computed.

variants.py   which steps are timed, on which networks, in which variants: one table for a CPU, one for a GPU
machine.py    clocks, variants in alternation, the allowance of time, ceilings of the machine, operations and memory
measure.py    a benchmark as one record: methods, pairs, the price of MMARD, attacks, batches
agreement.py  the engine's x_adv, losses and gradients beside those of the plain path
records.py    files: JSON and the chart
"""
