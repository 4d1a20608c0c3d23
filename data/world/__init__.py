"""The synthetic scenes with known ground truth: described, rendered, captioned and edited."""
