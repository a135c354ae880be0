"""Whether the auxiliary loss of a mixture's routers can count in a run, and how much it does."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraft.adapters.targets import TargetModules
from loraft.config.schema import RunConfig
from loraft.errors import ModelError
from loraft.models.hf_config import quietly
from loraft.models.model_structure import ROUTERS, expert_tensors
from loraft.models.modules import is_within, states_and_router_loss
from loraft.models.registry import ModelSpec, place_in
from loraft.models.tiny_copy import text_read, tiny_copy
from loraft.tasks import TASKS

KEY = "training.router_aux_loss_coef"
NAMES = ("router_aux_loss_coef", "aux_loss_coef")
"""What models and their configs call the coefficient."""


def router_loss(
    run: RunConfig, model: PreTrainedModel, family: ModelSpec, targets: TargetModules | None
) -> tuple[float, list[str]]:
    """What the auxiliary loss of the routers counts in a run, and what there is to say about it.

    Args:
        run: What is asked for.
        model: On the meta device.
        family: Where it keeps layers and experts.
        targets: What is trained of it; None is all.

    Raises:
        ModelError: The type has no such loss, its config no coefficient, or nothing that is trained changes the loss.
    """
    asked = run.training.router_aux_loss_coef
    if not TASKS[run.task].balances_routers:
        return 0.0, []
    if asked == 0:
        wanted = getattr(model.config.get_text_config(), "output_router_logits", False)
        note = f"the model's config asks for the auxiliary loss of the routers, and {KEY} leaves it out (auto adds it)"
        return 0.0, [note] if wanted else []
    if not _has_router_loss(model, family):
        message = f"transformers computes no auxiliary loss of routers for a {family.model_type}"
        raise ModelError(message, key=KEY, remedy="Leave it out.")
    if not _reaches_routers(model, family, targets):
        message = "no router is trained and nothing below one, so the auxiliary loss of the routers has no gradient"
        remedy = "Leave it out, or adapt attention or a router (lora.target_parameters) too."
        raise ModelError(message, key=KEY, remedy=remedy)
    if asked != "auto":
        return asked, []
    places = (model, model.config.get_text_config())
    found = (getattr(place, name, None) for place in places for name in NAMES)
    coefficient = next((number for number in found if isinstance(number, int | float)), None)
    if coefficient is None:
        raise ModelError("the model's config names no coefficient", key=KEY, remedy="Write a number, such as 0.001.")
    return coefficient, [f"{KEY} auto is {coefficient:g}, as the model's config says"]


def _has_router_loss(model: PreTrainedModel, family: ModelSpec) -> bool:
    """Whether a tiny copy of the architecture gives such a loss, with a gradient."""
    with quietly():
        small = tiny_copy(model.config)
        if small is None:
            return False
        try:
            with torch.enable_grad():
                _, loss = states_and_router_loss(small, plain=family.plain, **text_read(small))
        except Exception:  # what an architecture cannot do, it refuses in a way of its own
            return False
    return isinstance(loss, Tensor) and loss.requires_grad


def _reaches_routers(model: PreTrainedModel, family: ModelSpec, targets: TargetModules | None) -> bool:
    """Whether something that is trained is a router of the last layer that has one, or comes before it."""
    experts = [name for name in expert_tensors(model) if place_in(family.stacks, name).inside not in family.unreached]
    if targets is None or targets.rows or not experts:
        return True
    last = max(place_in(family.stacks, name).layer for name in experts)
    block = experts[-1].rpartition(".")[0].rpartition(".")[0]  # of the module of its experts
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())

    def reaches(module: str) -> bool:
        layer = place_in(family.stacks, module).layer
        if layer != last:
            return 0 <= layer < last or is_within(module, embedding)
        return bool(ROUTERS.search(module)) or not is_within(
            module, block, *(name.rpartition(".")[0] for name in experts)
        )

    parameters = (*(weight.name for weight in targets.weights), *targets.biases)
    return any(map(reaches, (*targets.modules, *targets.saved, *(name.rpartition(".")[0] for name in parameters))))
