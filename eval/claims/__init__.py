"""The papers' claims and how figures judge them."""
