"""Trainings of the miniature's parts, each a task on the project's own engine. `make` runs them all."""
