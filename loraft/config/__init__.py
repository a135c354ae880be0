"""The config: what may be in it, how it is read and checked, and how it is written. Light: no torch."""
