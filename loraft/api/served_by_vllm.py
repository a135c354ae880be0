"""What vLLM, which serves many users on GPUs, refuses of an adapter, while it can still be trained another way.

Source: vllm/lora/peft_helper.py and vllm/config/lora.py of vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraft.config.schema import RunConfig
from loraft.config.sections import FROM_WEIGHTS
from loraft.planning.run_plan import RunPlan
from loraft.tasks import TASKS

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks up to which it can be started to take adapters; 16 is its own choice."""
DEFAULT_RANK = 16


def vllm_notes(plan: RunPlan) -> Iterator[str]:
    """What there is to say, a sentence each; nothing of what vLLM does not serve at all."""
    config, targets = plan.config, plan.shape.targets
    if targets is None or not TASKS[config.task].generates or len(plan.shape.depths) > 1:
        return
    if refused := list(_refused(config)):
        yield f"vLLM takes no adapter with {' or '.join(refused)}: merge it, and serve the merged model"
        return
    rank = max(targets.ranks.values(), default=0) * (2 if config.lora.init in FROM_WEIGHTS else 1)
    if rank > RANKS[-1]:
        yield f"vLLM takes no adapter of rank {rank}, above {RANKS[-1]}: merge it, and serve the merged model"
    elif rank > DEFAULT_RANK:
        most = next(each for each in RANKS if each >= rank)
        yield f"vLLM takes an adapter of rank {rank} where it is started with --max-lora-rank {most}"


def _refused(config: RunConfig) -> Iterator[str]:
    lora = config.lora
    if lora.use_dora:
        yield "lora.use_dora"
    if lora.modules_to_save:
        yield "lora.modules_to_save"
    if lora.bias != "none":
        yield "lora.bias"
    if config.model.add_tokens:
        yield "model.add_tokens"
