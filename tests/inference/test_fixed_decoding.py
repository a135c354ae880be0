"""Decoding in room that stays where it is, recorded: the tokens of a cache that grows."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from loraft.inference import decoder_state, fixed_decoding
from loraft.inference.completion import Completion
from loraft.inference.decoder_state import DecoderState
from loraft.inference.engine import complete_batch, stream
from loraft.inference.fixed_decoding import Step, why_not_fixed
from loraft.inference.sampling import GREEDY, SamplingParams
from loraft.kernels.layer_stream import LayerStream
from loraft.models.model_structure import layers_of
from loraft.models.registry import FAMILIES
from tests.cli.running import loraft
from tests.inference.tape import on_tape
from tests.inference.test_decoder_state import ROW, adapted
from tests.tiny import TELLING, mostly_slow, save_tiny, tiny_model, tiny_tokenizer
from tests.words import Wording
from tests.zoo import models as zoo

PROMPTS = [ROW, ROW[:3], ROW[2:9]]
GENERATING = [name for name, family in FAMILIES.items() if family.generates and name not in ("bloom", "m2m_100")]


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, with a tape for a graph."""
    monkeypatch.setattr(decoder_state, "recorder_for", lambda model: on_tape if why_not_fixed(model) is None else None)


def read_both(model: nn.Module, prompts: Sequence[Sequence[int]] = PROMPTS) -> tuple[list[torch.Tensor], DecoderState]:
    """The largest differences of logits from those of a cache that grows, through steps after which a row leaves."""
    grown, fixed = DecoderState(model), DecoderState(model, room=40)
    start, mask = grown.begin(prompts)
    fixed.begin(prompts)
    differences = [(grown.read(start, mask) - fixed.read(start, mask)).abs().max()]
    for step in range(12):
        ids = torch.tensor([[step + 3], [step + 5], [step + 50]])[: 3 if step < 6 else 2]
        differences.append((grown.read(ids) - fixed.read(ids)).abs().max())
        if step == 5:
            grown.keep([2, 0])
            fixed.keep([2, 0])
    return differences, fixed


@pytest.mark.slow_after(3)
@pytest.mark.usefixtures("taped")
@pytest.mark.parametrize("model_type", mostly_slow(GENERATING, *TELLING))
def test_c36_a_recorded_step_reads_as_a_cache_that_grows(model_type: str) -> None:
    """Past sliding windows of 8 tokens, with padded rows and one that leaves."""
    differences, fixed = read_both(tiny_model(model_type))
    assert max(differences) <= 2e-5
    assert fixed._fixed is not None
    assert fixed._fixed._replay is not None


def answers(model: nn.Module, rules: SamplingParams = GREEDY, **more: bool) -> list[Completion]:
    return complete_batch(
        model, tiny_tokenizer(), PROMPTS, rules=rules, max_new_tokens=14, stop_ids=[5, 77], seed=3, **more
    )  # type: ignore[arg-type]


@pytest.mark.slow_after(1)
@pytest.mark.usefixtures("taped")
@pytest.mark.parametrize("rules", [GREEDY, SamplingParams(temperature=1.0, repetition_penalty=1.2)])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "t5"])
def test_answers_are_those_of_a_cache_that_grows(model_type: str, rules: SamplingParams) -> None:
    model = adapted(tiny_model(model_type))
    recorded, launched = answers(model, rules), answers(model, rules, cuda_graphs=False)
    assert [each.token_ids for each in recorded] == [each.token_ids for each in launched]
    settings = {"rules": rules, "max_new_tokens": 14, "stop_ids": [5, 77], "seed": 3}
    alone = stream(model, tiny_tokenizer(), PROMPTS[0], **settings)  # type: ignore[arg-type]
    assert alone.completion.token_ids == launched[0].token_ids


def wrong(step: Step) -> Step:
    """A record into which a number of the host went: it gives the same each time."""
    with torch.inference_mode():
        replay = on_tape(step)
        logits = replay().clone()
    step.__self__.place.sub_(1)  # type: ignore[attr-defined]
    return lambda: replay() * 0 + logits + torch.arange(logits.shape[-1])


def refused(_: Step) -> Step:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def refused_without_a_word(_: Step) -> Step:
    raise RuntimeError


@pytest.mark.parametrize(
    ("record", "reason"),
    [(wrong, "gave other logits"), (refused, "operation not permitted"), (refused_without_a_word, "RuntimeError")],
)
def test_where_a_record_is_wrong_or_not_to_be_had_it_goes_on_without_and_says_so(
    record: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_state, "recorder_for", lambda _: record)
    with pytest.warns(UserWarning, match=reason):
        differences, _ = read_both(tiny_model("llama"))
    assert max(differences) <= 2e-5


def test_no_record_is_begun_of_a_step_for_which_the_host_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that breaks leaves torch's allocator in disorder."""

    @contextmanager
    def waits(_: torch.device) -> Iterator[None]:
        yield
        raise RuntimeError("called a synchronizing CUDA operation")

    def never(_: Step) -> Step:
        raise AssertionError

    monkeypatch.setattr(decoder_state, "recorder_for", lambda _: never)
    monkeypatch.setattr(fixed_decoding, "refusing_waits", waits)
    with pytest.warns(UserWarning, match="synchronizing"):
        differences, _ = read_both(tiny_model("llama"))
    assert max(differences) <= 2e-5


def test_what_cannot_be_recorded_is_told_beforehand() -> None:
    assert "mask that grows" in (why_not_fixed(tiny_model("bloom")) or "")
    assert "has to grow" in (why_not_fixed(tiny_model("m2m_100")) or "")
    assert "nothing is known" in (why_not_fixed(zoo.build("falcon", "causal")) or "")
    model = tiny_model("llama")
    assert why_not_fixed(model) is None
    model.lm_head.to("meta")
    assert "lie elsewhere" in (why_not_fixed(model) or "")
    fed = tiny_model("llama")
    LayerStream(fed, layers_of(fed, FAMILIES["llama"]), torch.device("cpu"))
    assert "lie elsewhere" in (why_not_fixed(fed) or "")


@pytest.mark.usefixtures("taped")
def test_few_tokens_and_beams_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(decoder_state, "FixedDecoding", never)
    how = {"stop_ids": (), "rules": GREEDY}
    with warnings.catch_warnings():
        complete_batch(tiny_model("llama"), tiny_tokenizer(), PROMPTS, max_new_tokens=4, **how)  # type: ignore[arg-type]
        how["rules"] = SamplingParams(num_beams=2)
        complete_batch(tiny_model("llama"), tiny_tokenizer(), PROMPTS, max_new_tokens=9, **how)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        complete_batch(tiny_model("llama"), tiny_tokenizer(), PROMPTS, max_new_tokens=9, stop_ids=(), rules=GREEDY)


def test_on_a_cpu_there_are_no_graphs_to_leave_out(tmp_path: Path, wording: Wording) -> None:
    save_tiny(tmp_path / "model")
    refused = loraft("generate", "model", "--prompt", "the order", "--no-cuda-graphs", cwd=tmp_path)
    assert refused.returncode == 2
    wording(re.sub(r"\(.*\)", "(its name)", refused.stderr))
