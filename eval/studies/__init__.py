"""What the commands about single questions measure, one question a file."""
