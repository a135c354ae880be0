"""What a model answers to `training.sample_prompts` while it is trained."""

from __future__ import annotations

from collections.abc import Callable

from loraft.adapters.inject import AdaptedModel
from loraft.inference.engine import stream
from loraft.inference.sampling import SamplingParams
from loraft.planning.run_plan import RunPlan
from loraft.rows.formats import Message


def answerer_of(adapted: AdaptedModel, plan: RunPlan) -> Callable[[str], str]:
    """Answers to `training.sample_prompts` as `generate` would give them: greedy, whatever the defaults are."""
    renderer = plan.data.renderer
    rules = SamplingParams().beginning_with(plan.task.first_tokens(adapted.model, renderer))

    def answer(prompt: str) -> str:
        asked = [Message("user", prompt)]
        system = renderer.system_prompt
        ids = renderer.prompt_ids([Message("system", system), *asked] if system else asked)
        limit = plan.config.generation.max_new_tokens
        answered = stream(
            adapted.model, renderer.tokenizer, ids, rules=rules, max_new_tokens=limit, stop_ids=renderer.stop_ids
        )
        return answered.completion.completion

    return answer
