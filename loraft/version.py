"""The version of loraft, which every module may ask for."""

__all__ = ["__version__"]

__version__ = "0.1.0"
