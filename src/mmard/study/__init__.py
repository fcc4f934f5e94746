"""Studies: declared grids of runs, made in pieces, and read from records.

Declared
    declared.py     what a study and a scale are; the shipped ones in declared/
    grid.py         the cells that follow from the two
    choosing.py     which cells are meant

Made
    place.py        folders, locks, what a cell's folder says of it
    cell.py         one cell trained; recording.py its record; nearness.py the boundary part of it
    running.py      one worker; workers.py many here; cluster.py many as jobs
    standing.py     how far cells are; expecting.py how long they take
    records.py      records in files, and a cell made again from its own

Read
    summary.py      means, differences, by row; rows.py, slope.py, nearby.py
    tables.py       tables; charts.py pictures; sheets.py, drawn.py, labels.py their forms
    claims.py       verdicts; ledger.py RESULTS.md; provenance.py what stands behind it
"""
