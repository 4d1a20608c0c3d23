"""The pieces of scripts.rehearsal: its stages, what each took, and what was promised."""
