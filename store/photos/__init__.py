"""Photos on disk: the table of them, their files, metadata, splits and pairs."""
