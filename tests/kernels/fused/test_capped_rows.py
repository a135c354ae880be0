"""Capped attention of all rows at once: flex attention with our blocks, as torch traces it and computes it on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from loraft.kernels.fused import capped_rows, fuse, row_trials
from loraft.kernels.fused.capped_rows import AT_ONCE, BLOCK, fuse_capped
from loraft.kernels.fused.row_trials import CAPPED
from loraft.kernels.packed_attention import _slices
from tests.tiny import tiny_model

ROWS = [([5, 1, 130, 7], None), ([5, 1, 130, 7], 3), ([256, 40], 129), ([BLOCK, BLOCK], None), ([1], 1)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Flex attention traced as on CUDA and computed by torch's own operations; a name for each time it was traced."""
    traced: list[str] = []

    def noting(graph: torch.fx.GraphModule, given: list[torch.Tensor]) -> object:
        traced.append("graph")
        return torch._dynamo.lookup_backend("aot_eager")(graph, given)  # type: ignore[attr-defined]

    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)  # it knows no backward pass on a CPU, which it has
    torch._dynamo.reset()
    made = torch.compile(flex.flex_attention, backend=noting)
    monkeypatch.setattr(capped_rows, "compiled", lambda: made)
    yield traced
    torch._dynamo.reset()


@pytest.mark.parametrize(("lengths", "window"), ROWS)
def test_blocks_that_are_seen_are_those_with_a_token_that_is(lengths: list[int], window: int | None) -> None:
    time = sum(lengths)
    seen = torch.zeros(time, time, dtype=torch.bool)
    for row in _slices(lengths):
        ones = torch.ones(row.stop - row.start, row.stop - row.start, dtype=torch.bool)
        seen[row, row] = ones.tril() if window is None else ones.tril() & ones.triu(1 - window)
    made = capped_rows._blocks(tuple(lengths), window, torch.device("cpu"))
    query, key = torch.arange(time)[:, None], torch.arange(time)
    assert torch.equal(made.mask_mod(None, None, query, key), seen)
    plain = flex.create_block_mask(made.mask_mod, None, None, time, time, device="cpu")
    assert torch.equal(made.to_dense().bool(), plain.to_dense().bool())


@pytest.mark.slow
def test_a_trial_finds_the_numbers_of_products_written_out(counted: list[str]) -> None:
    for lengths, window in row_trials.TRIED:
        assert row_trials.distance("cpu", torch.float32, 8, lengths, window) < 1e-5
    told = len(counted)
    assert row_trials.distance("cpu", torch.float32, 8, [500, 2, 77], 40) < 1e-5
    assert len(counted) == told, "what was compiled in the trial takes any other length"


@pytest.mark.filterwarnings("ignore")  # of what a compiler imports
def test_it_may_be_compiled_for_all_that_a_run_asks_of_it() -> None:
    """A trial has it compiled four times, training and evaluation twice each, a reference once more: 8 are too few."""
    capped_rows.compiled.__wrapped__()
    assert torch._dynamo.config.recompile_limit >= capped_rows.VARIANTS


def test_what_cannot_be_compiled_or_is_off_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    for answer, said in (
        (3.0, "off by 3.0e+00"),
        (float("nan"), "off by nan"),
        (RuntimeError("no compiler\nat"), "no compiler"),
    ):
        row_trials.capped_fault.cache_clear()

        def found(*_: object, answer: float | Exception = answer) -> float:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(row_trials, "distance", found)
        fault = row_trials.capped_fault("cuda", torch.bfloat16, 64)
        assert fault is not None
        assert said in fault
    row_trials.capped_fault.cache_clear()


def test_modules_that_cap_and_drop_nothing_are_taken() -> None:
    model = tiny_model("gemma2")
    assert fuse_capped(model) == model.config.num_hidden_layers
    assert all(getattr(module, AT_ONCE) for module in capped_rows.capped_modules(model))
    assert fuse_capped(tiny_model("gemma2", attention_dropout=0.1)) == 0
    assert fuse_capped(tiny_model("llama")) == 0


@pytest.mark.parametrize("fault", [None, "no compiler"])
def test_what_takes_them_is_said(fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "faults", lambda *_: {})
    monkeypatch.setattr(fuse, "capped_fault", lambda *_: fault)
    model = tiny_model("gemma2")
    notes = " ".join(fuse.fuse_chosen(model, "cuda", torch.bfloat16))
    assert (f"{CAPPED} of 3 modules" in notes) == (fault is None)
    assert (f"{CAPPED}: no compiler" in notes) == (fault is not None)
    assert [hasattr(module, AT_ONCE) for module in capped_rows.capped_modules(model)] == 3 * [fault is None]
