"""Measure the upgrade."""
