"""The feed-forward part in tiles: the numbers of the whole one, and less of it at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from loraft.kernels.low_rank.lora_linear import patch_lora_linears
from loraft.kernels.tiled_mlp import tile_mlps
from loraft.models.model_structure import family_in, feed_forward_parts
from loraft.models.registry import FAMILIES
from tests.tiny import TELLING, mostly_slow, tiny_model

TILED = {
    "arcee", "cohere", "cohere2", "distilbert", "exaone4", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2",
    "gpt_bigcode", "gpt_neox", "granite", "llama", "ministral3", "mistral", "mt5", "olmo", "olmo2", "olmo3", "phi",
    "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2", "t5",
}  # fmt: skip
"""Of bart, bert, opt and their kin the part is no module of its own, bloom's adds what went around it, and mixtral's
has a router."""
TOKENS, TILE = 23, 5


@pytest.mark.parametrize("model_type", [*TELLING, "distilbert", "opt"])
def test_the_families_whose_part_is_a_module_that_reads_a_token_alone(model_type: str) -> None:
    model = tiny_model(model_type)
    found = feed_forward_parts(model, family_in(model))
    assert bool(found) == (model_type in TILED)
    for part in found.values():
        x = torch.randn(2, 9, model.config.get_text_config().hidden_size)
        torch.testing.assert_close(part.eval()(x)[:, 3:4], part(x[:, 3:4]))


def adapted(model_type: str, dtype: torch.dtype, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    lora = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False,
        fan_in_fan_out=model_type == "gpt2", **options,
    )  # fmt: skip
    model = tiny_model(model_type).to(dtype)
    model = get_peft_model(model, lora).train()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    patch_lora_linears(model, "default", FAMILIES[model_type].same_input)
    return model


def tiled(model: nn.Module, tile: int = TILE) -> nn.Module:
    made = copy.deepcopy(model)
    base: Any = made.get_base_model()  # type: ignore[operator]
    parts = feed_forward_parts(tiny_model(base.config.model_type), family_in(base))
    tile_mlps([base.get_submodule(name) for name in parts], tile)
    return made


def checkpointed(model: Any) -> None:
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model.get_base_model().disable_input_require_grads()


def results(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 300, (1, TOKENS))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        logits = model(input_ids=ids).logits.float()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return [logits.detach(), *torch.autograd.grad(logits.square().mean(), trained)]


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("model_type", mostly_slow(["llama", "gemma2", "gpt2"], "llama"))
def test_outputs_and_gradients_are_those_of_the_whole_part(
    model_type: str, recomputed: bool, dtype: torch.dtype
) -> None:
    """gpt2 draws dropout in the part, gemma2 keeps the part's output for the norm behind it."""
    plain = adapted(model_type, dtype, lora_dropout=0.0)
    if model_type == "gpt2":  # dropout's numbers depend on the shapes that are drawn
        for module in plain.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    ours = tiled(plain)
    if recomputed:
        checkpointed(plain)
        checkpointed(ours)
    whole, in_tiles = results(plain, dtype), results(ours, dtype)
    near = 1e-5 if dtype == torch.float32 else 2e-2  # sums over tokens are rounded tile by tile
    for mine, theirs in zip(in_tiles, whole, strict=True):
        assert (mine - theirs).norm() <= near * theirs.norm()


def test_what_is_drawn_in_a_tile_is_drawn_again_in_its_backward_pass() -> None:
    torch.manual_seed(0)
    part = nn.Sequential(nn.Dropout(0.5))
    tile_mlps([part], TILE)
    x = torch.ones(1, TOKENS, 4, requires_grad=True)
    out = part(x)
    torch.rand(7)  # what is drawn between
    before = torch.get_rng_state()
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_that_is_recomputed_computes_its_part_twice_and_not_three_times() -> None:
    model = tiled(adapted("llama", torch.float32))
    checkpointed(model)
    calls: list[int] = []
    first: Any = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    first.register_forward_hook(lambda _module, given, _out: calls.append(given[0].shape[1]))
    results(model, torch.float32)
    assert calls == 2 * [5, 5, 5, 5, 3]


def test_short_rows_are_not_split_and_nothing_is_kept_without_a_graph() -> None:
    model = tiled(adapted("llama", torch.float32), tile=TOKENS)
    part: Any = model.get_submodule("base_model.model.model.layers.0.mlp")
    assert "Tiles" not in type(part(torch.randn(1, TOKENS, 32)).grad_fn).__name__
    with torch.no_grad():
        assert part(torch.randn(1, 2 * TOKENS, 32)).grad_fn is None
