"""The prompts that a run answers at each evaluation (`training.sample_prompts`), and whether it can read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loraft.config.schema import RunConfig
from loraft.errors import DataError, Problem
from loraft.rows.formats import Message
from loraft.tasks import TASKS
from loraft.tokenization.examples import RowRenderer

KEY = "training.sample_prompts"


def sample_ids(renderer: RowRenderer, prompt: str) -> list[int]:
    """The tokens of a prompt behind the system prompt of training.

    Raises:
        DataError: It cannot be printed, or holds what is refused.
    """
    system, asked = renderer.system_prompt, Message("user", prompt)
    return renderer.prompt_ids([Message("system", system), asked] if system else [asked])


def sample_problems(config: RunConfig, renderer: RowRenderer, context: int | None) -> Iterator[Problem]:
    """What is wrong with the prompts, which else would end the run at its first evaluation."""
    if not TASKS[config.task].generates or config.data.eval is None:  # then none is answered
        return
    for number, prompt in enumerate(config.training.sample_prompts, start=1):
        try:
            count = len(sample_ids(renderer, prompt))
        except DataError as error:
            yield from (replace(each, message=f"number {number}: {each.message}", key=KEY) for each in error.problems)
            continue
        if not count:
            yield Problem(f"number {number} has no tokens", key=KEY, remedy="give it at least one word")
        elif context is not None and count > context:
            message = f"number {number} has {count:,} tokens, and the model {context:,} positions"
            yield Problem(message, key=KEY, remedy=f"shorten it to {context:,} tokens")
