"""Whether this machine reaches the Hub and may write there, as far as that is known without asking it."""

from __future__ import annotations

from dataclasses import replace

from loraft.errors import Problem

WITHOUT_TOKEN = "log in by `hf auth login`, or set HF_TOKEN in the environment"


def unreached() -> str:
    """Why the Hub may have given nothing, as a part of a sentence."""
    from huggingface_hub import constants

    return "the Hub is off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"


def hub_problems(repo: str, at: Problem, *, asks: bool = True) -> list[Problem]:
    """What stands in the way of pushing to `repo`, at the place of `at`: its name; and where it asks, no token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    problems = []
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = str(error).partition(":")[0].rstrip(".")
        problems.append(replace(at, message=f"{repo!r} is no repository's name: {reason}", remedy="write OWNER/NAME"))
    if asks and constants.HF_HUB_OFFLINE:
        problems.append(replace(at, message="HF_HUB_OFFLINE is set: the Hub is not asked", remedy="unset it"))
    elif asks and get_token() is None:
        problems.append(replace(at, message="nobody is logged in to the Hub", remedy=WITHOUT_TOKEN))
    return problems
