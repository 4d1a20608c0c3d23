"""Captioners: models that describe pictures and rewrite texts, behind one interface."""
