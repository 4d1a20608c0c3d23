"""The pieces of eval.ablation, one subject a file."""
