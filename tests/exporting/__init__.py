"""Exporting to files of other programs."""
