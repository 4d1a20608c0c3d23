"""Evaluation: commands, the methods that are compared behind one interface, every metric, and the reports."""
