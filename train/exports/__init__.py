"""The parts of an export: the weights of a run, the pipeline's folder with its code, the proof."""
