"""Play faults against the real commands while writers write and ticks tick: `make soak`.

plan.py draws what will happen, cycle.py plays it, judge.py says whether all is as it must be.
"""
