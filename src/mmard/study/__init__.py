"""Studies: grids of runs that are declared, made and read from their records.

Declared
    declared/       TOML files of studies, scales, claims and published figures
    grid.py         what these files may say, and the cells that follow from a study and a scale

Made
    cell.py         one cell: trained, attacked, recorded; boundary.py how near its inputs come to decision boundaries
    workers.py      many cells: processes of this machine, or jobs of a cluster
    progress.py     how far cells are, and how long they take
    records.py      records in files, and a cell made again from its own

Read
    reading.py      means and paired differences by row; trends.py lines through rows
    hosts.py        tables and plots of variants beside their host; methods.py of methods beside each other
    tables.py       by which of them a study is read, in every form; figures.py and drawing.py what they are made of
    claims.py       verdicts on the paper's claims; ledger.py RESULTS.md
"""
