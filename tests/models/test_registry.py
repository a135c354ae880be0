"""Each family's row says what its tiny model shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraft.config.choices import TaskName
from loraft.errors import ModelError
from loraft.kernels.packed_attention import ROWS
from loraft.models.registry import DECODERS, FAMILIES, row_of
from loraft.tasks import TASKS
from tests.tiny import TINY_MODEL_TYPES, TINY_OTHERS, tiny_model


@pytest.mark.parametrize("model_type", TINY_MODEL_TYPES)
def test_names_match_all_linear_modules_of_every_layer(model_type: str) -> None:
    family = DECODERS[model_type]
    model = tiny_model(model_type)
    layers = model.get_submodule(family.layers_path)
    assert isinstance(layers, nn.ModuleList)
    assert len(layers) == model.config.num_hidden_layers
    suffixes = family.attention + family.mlp
    for layer in layers:
        names = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]
        owners = [[suffix for suffix in suffixes if f".{name}".endswith(f".{suffix}")] for name in names]
        assert all(len(owner) == 1 for owner in owners), dict(zip(names, owners, strict=True))
        assert sorted(owner[0] for owner in owners) == sorted(suffixes)


OF_OTHER_VARIANTS = {"t5": {"wi_0", "wi_1"}, "mt5": {"wi"}}
"""A gated T5, as mT5 always is, has two matrices in place of wi."""


@pytest.mark.parametrize("model_type", TINY_OTHERS)
def test_names_match_all_linear_modules_of_every_layer_of_the_other_kinds(model_type: str) -> None:
    family = FAMILIES[model_type]
    model = tiny_model(model_type)
    assert list(family.stacks) == (["encoder", "decoder"] if family.kind == "encoder_decoder" else [family.kind])
    matched = set()
    for path in family.stacks.values():
        layers = model.get_submodule(path)
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            names = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]
            for name in names:
                of_attention = [suffix for suffix in family.attention if f".{name}".endswith(f".{suffix}")]
                of_mlp = [suffix for suffix in family.mlp if f".{name}".endswith(f".{suffix}")]
                owner = of_attention or of_mlp  # the attention's where both match
                assert len(owner) == 1, name
                matched |= set(owner)
    assert matched == {*family.attention, *family.mlp} - OF_OTHER_VARIANTS.get(model_type, set())


def test_a_gated_t5_has_its_matrices_in_the_table() -> None:
    model = tiny_model("t5", feed_forward_proj="gated-gelu")
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert names - {"lm_head"} == {*FAMILIES["t5"].attention, *FAMILIES["t5"].mlp} - {"wi"}


@pytest.mark.parametrize("model_type", TINY_MODEL_TYPES)
def test_what_stands_around_the_head_is_in_the_config(model_type: str) -> None:
    family = DECODERS[model_type]
    config = tiny_model(model_type).config
    for attribute in (family.final_softcap, family.logit_multiplier, family.logit_divisor):
        assert attribute is None or hasattr(config, attribute)


@pytest.mark.parametrize("model_type", [name for name, family in DECODERS.items() if family.packs])
def test_c11_rows_laid_end_to_end_equal_rows_alone_where_the_family_packs(model_type: str) -> None:
    lengths = [7, 13, 4]
    rows = [torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])
    model = tiny_model(model_type)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
        model.set_attn_implementation(ROWS)
        packed = model(
            input_ids=torch.cat(rows)[None], position_ids=positions[None], row_lengths=lengths, use_cache=False
        ).logits[0]
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-5)
    assert alone.std() > 0.1


@pytest.mark.parametrize(
    ("task", "model_type", "take_it"),
    [
        ("causal_lm", "t5", "seq2seq_lm or seq2seq_preference"),
        ("causal_lm", "bert", "seq_cls"),
        ("seq2seq_lm", "llama", "causal_lm or preference"),
    ],
)
def test_a_type_for_another_task_is_answered_with_the_task_and_no_list(
    task: TaskName, model_type: str, take_it: str
) -> None:
    with pytest.raises(ModelError, match=f"and task: {task}( or [a-z0-9_]*preference)? needs") as caught:
        row_of(model_type, TASKS[task].group)
    assert caught.value.problems[0].remedy == f"Write task: {take_it}."
