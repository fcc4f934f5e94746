"""The same step, faster: twins of the networks for the attack, precision, chunks, tables.

Formulas, methods and attacks know nothing of it, and the plain path stays beside it as the reference.
"""
