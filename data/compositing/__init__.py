"""Photographs with objects pasted on them, before and after an edit whose truth is known."""
