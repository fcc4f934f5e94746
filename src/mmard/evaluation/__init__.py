"""Robust accuracy as records: who survives which attack, out of how many, with an interval."""
