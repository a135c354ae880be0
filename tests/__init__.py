"""The tests mirror the package, path for path."""
