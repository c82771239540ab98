"""What an operator asks before and after an upgrade. Nothing here writes.

May import runner and hourly, and what lies below them.
"""
