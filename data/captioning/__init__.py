"""Captions from a model: what is asked, who answers, what is checked."""
