"""What a run is logged to (`training.report_to`), and whether it can be."""

from __future__ import annotations

from collections.abc import Sequence

from loraft.errors import EXTRAS, Problem, lacking


def tracker_problems(report_to: Sequence[str]) -> list[Problem]:
    """What is wrong with `training.report_to`: names that nothing has, and packages that are not installed.

    accelerate leaves out a tracker whose package is missing with a line in its log.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    key, known, problems = "training.report_to", sorted(LOGGER_TYPE_TO_CLASS), []
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in report_to:
        if name not in known:
            problems.append(Problem(f"{name!r} is no tracker", key=key, remedy=f"one of {', '.join(known)}"))
        elif name in EXTRAS and (problem := lacking(name, f"{name!r}", key=key)):
            problems.append(problem)
        elif name not in installed:
            remedy = f"install it with pip, or leave {name} out; metrics.jsonl is written always"
            problems.append(Problem(f"the package of {name} is not installed", key=key, remedy=remedy))
    return problems
