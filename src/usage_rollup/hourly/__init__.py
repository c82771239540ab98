"""The hourly rollup: catch it up, prove it, keep it ticking.

May import session and what lies below it, not the runner: nothing here applies a revision.
"""
