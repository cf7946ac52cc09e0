"""The reader: file to weights."""
