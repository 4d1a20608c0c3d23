"""Data: pictures are captioned, paired and encoded to shards that a training reads."""
