"""Rows that papers have published."""
