"""The page of a training run, from what lies in its folder."""
