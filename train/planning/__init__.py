"""The pieces of train.plan."""
