"""The pieces of eval.reconstruction."""
