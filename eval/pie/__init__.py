"""The pieces of eval.pie_bench and eval.compare."""
