"""Edits of scenes whose true edits are known: made, judged, compared and shown."""
