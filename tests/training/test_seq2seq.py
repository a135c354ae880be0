"""Encoder-decoders: the loss against transformers' own, and what padding, neighbours, checkpointing may not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from loraft.models.registry import FAMILIES
from loraft.tasks.batches import Batch, BatchLayout, collate_pairs
from loraft.tasks.loss import Seq2SeqLMLoss
from loraft.tokenization.examples import Example
from tests.tiny import mostly_slow, tiny_model
from tests.training.building import close, recorded, tiny_config, tiny_fit, without_dropout

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", {}),
    "t5, gated": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "t5, without the decoder's scale": ("t5", {"tie_word_embeddings": False}),
    "t5, gated, without the decoder's scale": (
        "t5",
        {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
    ),
    "mt5": ("mt5", {}),
    "bart": ("bart", {}),
    "mbart": ("mbart", {}),
    "m2m_100": ("m2m_100", {}),
    "marian": ("marian", {}),
}


def pair(seed: int, source: int, target: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids, labels = (torch.randint(3, 300, (length,), generator=generator).tolist() for length in (source, target))
    return Example.of_pair(ids, labels, f"row {seed}")


PAIRS = [pair(1, 9, 4), pair(2, 3, 11), pair(3, 14, 1)]


def batch_of(*pairs: Example) -> Batch:
    return collate_pairs(pairs, BatchLayout(False, 0))


def model_of(variant: str, *, tied: bool = True) -> PreTrainedModel:
    """A tiny model; what stands around its head is not zero, and untied it has a head of its own."""
    model_type, overrides = VARIANTS[variant]
    model = tiny_model(model_type, **overrides)
    generator = torch.Generator().manual_seed(7)
    bias = FAMILIES[model_type].logits_bias
    if bias is not None:
        getattr(model, bias).normal_(generator=generator)
    if not tied:
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.randn(head.weight.shape, generator=generator) * 0.2)
    return model


def loss_of(variant: str, *, tied: bool = True) -> Seq2SeqLMLoss:
    return Seq2SeqLMLoss(model_of(variant, tied=tied), FAMILIES[VARIANTS[variant][0]])


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("trained_head", [True, False], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("variant", mostly_slow(VARIANTS, "t5", "t5, gated", "bart"))
def test_c47_the_loss_and_its_gradient_are_the_models_own(variant: str, tied: bool, trained_head: bool) -> None:
    """C47: T5's decoder scale, the bias of BART, mBART and Marian, and the token that each decoder starts with."""
    loss = loss_of(variant, tied=tied).double()  # gradients far smaller than their terms are no rounding in float64
    loss.model.get_output_embeddings().weight.requires_grad_(trained_head)
    batch = batch_of(*PAIRS)
    expected = loss.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels, use_cache=False
    ).loss
    expected.backward()
    theirs = {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    loss.zero_grad()
    ours = loss(batch) / batch.targets
    ours.backward()
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    assert ours.item() > 1
    close({name: p.grad for name, p in loss.named_parameters() if p.grad is not None}, theirs, 1e-5)


@pytest.mark.parametrize("variant", mostly_slow(VARIANTS, "t5", "bart"))
def test_c15_padding_does_not_move_the_loss(variant: str) -> None:
    """C15: a padded batch's loss is the token-weighted mean of the single losses."""
    loss = loss_of(variant)
    with torch.no_grad():
        together = loss(batch_of(*PAIRS))
        alone = sum(loss(batch_of(one)) for one in PAIRS)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("variant", mostly_slow(VARIANTS, "t5", "bart"))
@pytest.mark.parametrize("training", [True, False])
def test_c11_the_rows_of_a_batch_do_not_see_each_other(variant: str, training: bool) -> None:
    """C11: another source and target in row 1 leave the gradient by row 2's source bit-equal."""
    loss = loss_of(variant)
    loss.model.train(training)
    without_dropout(loss.model)
    found = []
    for first in (pair(1, 9, 4), pair(9, 9, 4)):
        batch = batch_of(first, PAIRS[1])
        embedded: list[torch.Tensor] = []
        hook = (
            loss.model.get_encoder()
            .get_input_embeddings()
            .register_forward_hook(lambda _m, _i, out, embedded=embedded: (out.retain_grad(), embedded.append(out))[0])
        )
        total = loss(batch)
        total.backward()
        hook.remove()
        assert embedded[0].grad is not None
        found.append((embedded[0].grad[1, :3], embedded[0].grad[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["t5", "bart"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_c13_gradient_checkpointing_changes_no_gradient(tmp_path: Path, method: str, model_type: str) -> None:
    """C13: equal to 1e-6, and every B gets one at the first step.

    In float64: what the layers share (the encoder's states, T5's bias) gets its gradients summed in another order.
    """
    gradients = [
        recorded(
            tiny_config(
                tmp_path,
                task="seq2seq_lm",
                model_type=model_type,
                method=method,
                training__max_steps=1,
                training__gradient_checkpointing=on,
            ),
            prepare=lambda run: run.adapted.model.double(),
        )[0]
        for on in (False, True)
    ]
    close(gradients[1], gradients[0], 1e-6)
    assert all(g.abs().max() > 0 for name, g in gradients[1].items() if "lora_B" in name)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", ["t5", "bart", "marian"])
@pytest.mark.parametrize(
    ("layers", "encoder", "decoder"),
    [
        ({"decoder": "all"}, [False, False, False], [True, True]),
        ({"decoder": "last:1"}, [False, False, False], [False, True]),
        ({"encoder": "last:2"}, [False, True, True], [True, True]),
        ({"encoder": "last:1", "decoder": "last:1"}, [False, False, True], [True, True]),
        ("last:1", [False, False, True], [True, True]),
    ],
)
def test_frozen_layers_below_build_no_graph(
    tmp_path: Path, model_type: str, layers: Any, encoder: list[bool], decoder: list[bool], checkpointing: bool
) -> None:
    """A decoder over an encoder that is trained has a graph in every layer: each reads what the encoder gives."""
    config = tiny_config(
        tmp_path,
        task="seq2seq_lm",
        model_type=model_type,
        lora__layers=layers,
        training__gradient_checkpointing=checkpointing,
    )
    run, _ = tiny_fit(config)
    run.adapted.model.train()
    seen: dict[str, list[bool]] = {"encoder": [], "decoder": []}
    for stack, path in FAMILIES[model_type].stacks.items():
        for layer in run.adapted.loaded.model.get_submodule(path).children():
            layer.register_forward_hook(
                lambda _m, _i, out, seen=seen[stack]: seen.append(
                    (out if isinstance(out, torch.Tensor) else out[0]).grad_fn is not None
                )
            )
    run.loss(collate_pairs(run.plan.data.train[:2], run.plan.layout))
    assert seen == {"encoder": encoder, "decoder": decoder}
