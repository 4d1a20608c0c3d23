"""Edits of pictures whose truth nobody knows: PIE-Bench's cases and captioned photographs."""
