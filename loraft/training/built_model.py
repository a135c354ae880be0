"""A planned model, built: loaded, with its adapter, and with what training computes by."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedModel

from loraft.adapters.inject import AdaptedModel, attach
from loraft.distributed.part_loading import gather_in, loading_in_parts, whole_meanwhile
from loraft.distributed.ranks import ALONE, Ranks
from loraft.io.held_memory import give_back_at_once, release_before, release_freed
from loraft.kernels.cpu.dropout import patch_dropout
from loraft.kernels.cpu.line_attention import attend_by_lines
from loraft.kernels.fused.fuse import fuse_chosen
from loraft.kernels.layer_stream import Fed
from loraft.kernels.offloaded_inputs import keep_inputs_on_host
from loraft.kernels.packed_attention import ROWS
from loraft.kernels.packed_experts import PackedExperts
from loraft.kernels.rms_norm import patch_rms_norm
from loraft.kernels.tiled_mlp import tile_mlps
from loraft.kernels.transfer import has_own_memory
from loraft.models.load_model import load_model
from loraft.models.model_structure import layers_of
from loraft.models.modules import modules_of
from loraft.planning.run_plan import RunPlan
from loraft.planning.strategy import loads_in_parts


def build_model(plan: RunPlan, ranks: Ranks = ALONE) -> AdaptedModel:
    """The planned model: loaded, with its adapter, its attention, its norms and its checkpointing."""
    method = plan.config.method
    # What is trained whole is loaded in float32, without rounding on the way.
    placement = replace(plan.placement, dtype=torch.float32) if method == "full" else plan.placement
    quantization = plan.config.quantization if method == "qlora" else None
    group, labels = plan.task.group, plan.data.renderer.labels
    own_forms = plan.config.training.kernels == "auto"
    streamed: Fed | None = None
    if plan.config.model.stream_layers and has_own_memory(placement.device):
        streamed = "ends" if plan.shape.ends else "layers"
    in_parts = loads_in_parts(plan, ranks)
    with loading_in_parts(ranks) if in_parts else nullcontext():
        loaded = load_model(
            plan.model, placement, quantization=quantization, group=group, labels=labels, streamed=streamed
        )
    torch.manual_seed(plan.config.seed)
    if plan.layout.packed:
        loaded.model.set_attn_implementation(ROWS)
    elif own_forms and _may_attend_by_lines(plan):
        attend_by_lines(loaded.model)
    if in_parts and plan.shape.targets is not None and plan.shape.targets.saved:
        gather_in(loaded.model, ranks, besides=layers_of(loaded.model, loaded.family))
    adapted = attach(loaded, plan.config, partial(whole_meanwhile, ranks=ranks) if in_parts else nullcontext)
    patch_rms_norm(loaded.model)
    if own_forms:
        patch_dropout(loaded.model)
        told = fuse_chosen(loaded.model, plan.placement.device, plan.placement.dtype)
        adapted = replace(adapted, notes=(*adapted.notes, *told))
    if plan.config.training.tiled_mlp:
        tile_mlps(map(loaded.model.get_submodule, plan.shape.feed_forward))
    if plan.config.training.gradient_checkpointing:
        _checkpoint_layers(loaded.model, plan)
        if plan.placement.device == "cpu":
            give_back_at_once()
            release_before(layers_of(loaded.model, loaded.family))
    if plan.shape.quantization is not None:
        release_freed(plan.placement.device)
    return adapted


def _may_attend_by_lines(plan: RunPlan) -> bool:
    """Whether a CPU's own attention may be taken; a reference, which has no gradients, torch would round otherwise."""
    asked = plan.config.model.attn_implementation
    return plan.placement.device == "cpu" and asked == "auto" and not plan.task.has_reference(plan.config)


def _checkpoint_layers(model: PreTrainedModel, plan: RunPlan) -> None:
    """Recompute activations in the layers that have a graph; those below the first trained one have none to save."""
    # The method was renamed within the range of versions that loraft takes.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.disable_input_require_grads()  # type: ignore[no-untyped-call]
    if plan.config.training.gradient_checkpointing == "offload":
        keep_inputs_on_host(model, torch.device(plan.placement.device))
    for experts in modules_of(model, PackedExperts).values():
        experts.recomputed = True
    for stack, path in plan.shape.family.stacks.items():
        layers = list(model.get_submodule(path).children())
        for layer in layers[: len(layers) - plan.shape.graph_layers(stack)]:
            for module in layer.modules():  # T5's attention has the switch too, and lets gradients into its bias by it
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = False  # type: ignore[assignment]
