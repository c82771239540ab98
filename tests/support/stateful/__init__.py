"""Schedules of several sessions, replayed statement by statement: machine.py says how."""
