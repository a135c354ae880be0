"""Rows as they lie in files: read, recognised by their columns, and turned into records."""
