"""The versions of loraft, which every module may ask for, and of what it stands on."""

from functools import cache

__version__ = "0.1.0"


@cache
def version_of(package: str) -> str:
    """The installed version of a package, read once: it takes a millisecond."""
    from importlib.metadata import version  # not before it is asked for: help does without

    return version(package)
