"""The version of loraft, which every module may ask for."""

__version__ = "0.1.0"
