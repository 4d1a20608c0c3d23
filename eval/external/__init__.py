"""Rows of eval.pie_bench whose pictures something else has edited."""
