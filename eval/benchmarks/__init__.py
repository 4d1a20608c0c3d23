"""Data sets of edits in the forms in which they are passed on, read into entries of one form."""
