"""Commands that a person runs once in a while: the demo, benchmarks, and how the miniature was made."""
