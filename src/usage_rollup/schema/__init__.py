"""What CI compares: a database with what the revisions make.

May import runner and hourly, and what lies below them.
"""
