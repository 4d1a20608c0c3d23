"""A second part that is trained beside a task's own: how the engine trains it, and a discriminator made of heads."""
