"""The versions of loraft, which every module may ask for, and of what it stands on."""

from functools import cache

__version__ = "0.1.0"


COMPUTES_WITH = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors")
"""The libraries that a figure of loraft may depend on."""


@cache
def version_of(package: str) -> str:
    """The installed version of a package, read once: it takes a millisecond."""
    from importlib.metadata import version  # not before it is asked for: help does without

    return version(package)


def versions() -> dict[str, str]:
    """The versions of loraft and of what it computes with."""
    return {"loraft": __version__, **{name: version_of(name) for name in COMPUTES_WITH}}
