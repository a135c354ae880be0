"""The loss against transformers' own, for every family; and what packing and padding may not change."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from loraft.kernels import cross_entropy as loss_module
from loraft.kernels.cross_entropy import HeadWeights, chunked_loss, frozen_head_loss, targets_in_chunk
from loraft.kernels.packed_attention import ROWS
from loraft.models.registry import DECODERS, FAMILIES
from loraft.tasks.batches import BatchLayout, collate_texts
from loraft.tasks.loss import CausalLMLoss
from loraft.tokenization.examples import IGNORED, Example
from tests.tiny import TELLING, TINY_MODEL_TYPES, mostly_slow, tiny_model
from tests.training.building import without_dropout

PACKED, PADDED = BatchLayout(packed=True, pad_id=0), BatchLayout(packed=False, pad_id=0)
PACKING_FAMILIES = [name for name, family in DECODERS.items() if family.packs]


def example(seed: int, length: int, prompt: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 300, (length,), generator=generator).tolist()
    return Example.of_text(ids, [IGNORED] * prompt + ids[prompt:], f"row {seed}")


ROWS_OF = [example(1, 17, 5), example(2, 30, 20), example(3, 9, 1)]


def of(model_type: str) -> CausalLMLoss:
    return CausalLMLoss(tiny_model(model_type), FAMILIES[model_type])


@pytest.mark.parametrize("model_type", mostly_slow(TINY_MODEL_TYPES, *TELLING))
def test_c47_the_loss_is_the_models_own(model_type: str) -> None:
    """C47: soft caps, logit scales and head biases stand around the head, and the loss must pass them."""
    loss = of(model_type)
    for row in ROWS_OF:
        batch = collate_texts([row], PADDED)
        expected = loss.model(
            input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]), use_cache=False
        ).loss
        with torch.no_grad():
            ours = loss(batch) / batch.labels.numel()
        torch.testing.assert_close(ours, expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [PACKED, PADDED], ids=["packed", "padded"])
def test_c38_the_loss_of_rows_is_that_of_each_row_alone(layout: BatchLayout) -> None:
    """C38: rows that are read together, a loss for each; their sum is the batch's. 1e-5: float32."""
    loss = of("llama")
    if layout.packed:
        loss.model.set_attn_implementation(ROWS)
    batch = collate_texts(ROWS_OF, layout)
    with torch.no_grad():
        each = loss.of_texts(batch)
        alone = torch.stack([loss(collate_texts([row], layout)) for row in ROWS_OF])
        torch.testing.assert_close(each, alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(each.sum(), loss(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", mostly_slow(TINY_MODEL_TYPES, *TELLING))
def test_c15_padding_does_not_move_the_loss(model_type: str) -> None:
    """C15: a padded batch's loss is the token-weighted mean of the single losses."""
    loss = of(model_type)
    with torch.no_grad():
        together = loss(collate_texts(ROWS_OF, PADDED))
        alone = sum(loss(collate_texts([row], PADDED)) for row in ROWS_OF)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("model_type", mostly_slow(PACKING_FAMILIES, *TELLING))
@pytest.mark.parametrize("training", [True, False])
def test_c11_packed_rows_do_not_see_each_other(model_type: str, training: bool) -> None:
    """C11: the packed loss is the unpacked one, and another token in row 1 leaves row 2's states bit-equal."""
    loss = of(model_type)
    loss.model.set_attn_implementation(ROWS)
    loss.train(training)
    without_dropout(loss)
    changed = Example.of_text([7, *ROWS_OF[0].input_ids[1:]], ROWS_OF[0].labels, "changed")
    batches = [collate_texts([first, *ROWS_OF[1:]], PACKED) for first in (ROWS_OF[0], changed)]
    with torch.no_grad():
        states = [
            loss.model.base_model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, row_lengths=batch.row_lengths,
                use_cache=False,
            ).last_hidden_state[0]
            for batch in batches
        ]  # fmt: skip
        packed = loss(batches[0])
        alone = sum(loss(collate_texts([row], PADDED)) for row in ROWS_OF)
    border = len(ROWS_OF[0].input_ids)
    assert torch.equal(states[0][border:], states[1][border:])
    assert not torch.equal(states[0][:border], states[1][:border])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_c15_a_row_of_padding_at_the_end_of_a_line_moves_neither_loss_nor_gradient(model_type: str) -> None:
    results = []
    for layout in (PACKED, BatchLayout(packed=True, pad_id=5, multiple_of=32)):
        loss = of(model_type)
        loss.model.set_attn_implementation(ROWS)
        total = loss(collate_texts(ROWS_OF, layout))
        total.backward()
        results.append((total.detach(), {name: p.grad for name, p in loss.named_parameters()}))
    # float32 sums over another number of tokens: the same terms, and zeros, in another order.
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-4)


def test_chunks_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator)
    head = torch.nn.Linear(8, 50)
    ids = torch.randint(0, 50, (23,), generator=generator)
    results = []
    for chunk in (4, 100):
        states = hidden.clone().requires_grad_()
        total = chunked_loss(states, ids, head, chunk)
        total.backward()
        assert states.grad is not None
        results.append((total.detach(), states.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)
    expected = torch.nn.functional.cross_entropy(head(hidden), ids, reduction="sum").detach()
    torch.testing.assert_close(results[0][0], expected)


def test_a_chunk_is_bounded_in_bytes() -> None:
    assert targets_in_chunk(49_152) * 49_152 * 4 <= loss_module.CHUNK_BYTES
    assert targets_in_chunk(10**9) == 16


@pytest.mark.parametrize(
    ("gigabytes", "vocabulary", "targets"),
    [(80, 128_256, 2048), (24, 128_256, 1024), (24, 32_000, 4096), (4, 128_256, 128), (8, 10**9, 128)],
)
def test_a_chunk_on_a_gpu_is_a_share_of_its_memory_in_whole_tiles(
    gigabytes: int, vocabulary: int, targets: int
) -> None:
    assert targets_in_chunk(vocabulary, gigabytes * 2**30) == targets


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_frozen_head_gives_the_same_loss_and_gradient_in_one_pass(softcap: float | None, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(8, 50).requires_grad_(False)
    hidden, ids = torch.randn(53, 8, generator=generator), torch.randint(0, 50, (53,), generator=generator)

    def logits_of(states: torch.Tensor) -> torch.Tensor:
        logits = head(states) * scale
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    weights = HeadWeights(head.weight, head.bias, scale, softcap)
    results = []
    for compute in (lambda h: chunked_loss(h, ids, logits_of, 20), lambda h: frozen_head_loss(h, ids, weights, 20)):
        states = hidden.clone().requires_grad_()
        total = compute(states)
        (total / 7).backward()
        results.append((total.detach(), states.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(frozen_head_loss(hidden, ids, weights, 20), results[0][0])


def test_the_logits_of_one_chunk_are_let_go_before_the_next_ones_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def seen(*given: torch.Tensor | None) -> torch.Tensor:
        assert all(chunk() is None for chunk in made)
        logits = linear(*given)
        made.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(loss_module, "linear", seen)
    states = torch.ones(53, 8, requires_grad=True)
    frozen_head_loss(states, torch.zeros(53, dtype=torch.long), HeadWeights(torch.ones(50, 8), None, 1.0, None), 20)
    assert len(made) == 3


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_smoothed_labels_are_torchs_own(softcap: float | None, smoothing: float) -> None:
    """Both ways to a loss, with its gradient, against torch's `label_smoothing`: 1e-6 in float32."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(8, 50).requires_grad_(False)
    hidden, ids = torch.randn(53, 8, generator=generator), torch.randint(0, 50, (53,), generator=generator)

    def logits_of(states: torch.Tensor) -> torch.Tensor:
        logits = head(states) * 0.5
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    weights = HeadWeights(head.weight, head.bias, 0.5, softcap)
    results = []
    for compute in (
        lambda h: cross_entropy(logits_of(h), ids, label_smoothing=smoothing, reduction="sum"),
        lambda h: chunked_loss(h, ids, logits_of, 20, smoothing),
        lambda h: frozen_head_loss(h, ids, weights, 20, smoothing),
    ):
        states = hidden.clone().requires_grad_()
        total = compute(states) / 53
        total.backward()
        assert states.grad is not None
        results.append((total.detach(), states.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(results[2], results[0], rtol=1e-6, atol=1e-6)


def test_a_certain_mistake_has_a_finite_loss() -> None:
    """A probability that float32 cannot tell from zero: the loss is that of the logits, not infinite."""
    head = HeadWeights(torch.eye(3), None, 1.0, None)
    loss = frozen_head_loss(torch.tensor([[500.0, 0.0, 0.0]]), torch.tensor([1]), head, 4)
    assert loss.item() == pytest.approx(500.0)


@pytest.mark.parametrize("model_type", mostly_slow(PACKING_FAMILIES, "llama", "gemma2"))
def test_c15_a_beginning_that_is_computed_once_leaves_losses_and_gradients(model_type: str) -> None:
    """C15: what rows share a batch with changes nothing: of each its own loss, of all the gradients. 1e-4: float32."""
    beginning = example(4, 12, 12).input_ids
    rows = [
        Example.of_text([*beginning, *row.input_ids], [IGNORED] * 8 + beginning[8:] + row.labels, row.where)
        for row in ROWS_OF
    ]
    loss = of(model_type)
    without_dropout(loss.model)
    loss.model.set_attn_implementation(ROWS)
    parameters = [parameter for parameter in loss.model.parameters() if parameter.requires_grad]
    found = []
    for layout in (PACKED, BatchLayout(packed=True, pad_id=0, multiple_of=16, shares=True)):
        batch = collate_texts(rows, layout)
        assert batch.shared_prefix == (12 if layout.shares else 0)
        each = loss.of_texts(batch)
        found.append((each, torch.autograd.grad(loss(batch), parameters, allow_unused=True)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    for one, whole in zip(found[1][1], found[0][1], strict=True):
        if whole is not None:
            torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-4)
