"""Edits of people's own photographs: texts for them, what of a change is seen, the edits, and what is left of them."""
