"""Encoders of several objectives, each trained with several seeds, side by side."""
