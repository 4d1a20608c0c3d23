"""The parts of a run: its folder, launch, log, checkpoints, optimiser."""
