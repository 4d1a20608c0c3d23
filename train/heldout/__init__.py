"""The held-out samples of a run: which they are, what is asked of them, and their figures."""
