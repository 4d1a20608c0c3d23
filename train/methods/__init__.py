"""The methods that can be trained, one folder each."""
