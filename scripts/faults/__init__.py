"""Faults that are put in on purpose, to show that they are noticed."""
