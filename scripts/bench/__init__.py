"""The work of the benchmarks, and what they share."""
