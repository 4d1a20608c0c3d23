"""WebDataset shards: a sample, the stages that write shards, and the loader that reads them in an exact order."""
