"""Methods that invert an image and edit it by a new prompt: ours, baselines and references, behind one interface."""
