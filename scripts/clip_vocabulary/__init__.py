"""CLIP's own vocabulary, without which nothing that looks at tokens is seen as SDXL-Turbo will see it."""
