"""Pictures on disk: folders and tar files of them, read, measured and counted."""
