"""StyleDiffusion's mapping network."""
