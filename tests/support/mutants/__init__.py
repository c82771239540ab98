"""Mistakes that one could make, and whether the tests notice: `make mutants`.

A table names each by hand: a piece of SQL or Python, what it would be by mistake, and the tests that are
likely to notice. generated.py adds a sample of what cosmic-ray's operators make of src/. A mutant is killed
when a test of behaviour fails; digests, catalog snapshots and the layout of the house do not count.
"""
