"""The same prompts, the base and its adapters: each answers as it does alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.errors import AdapterError
from loraft.events import Event, Progress
from loraft.inference.batch_generate import compare
from loraft.inference.completion import Completion
from loraft.inference.engine import stream
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.session import Session, open_session
from tests.inference.voices import adapter_in, base_in

PROMPTS = ("the order is late", "so?", "the customer said that the answer is in the text")
OPTIONS = GenerationRequest(max_new_tokens=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    adapter_in(folder / "a", base_in(folder / "base"), system_prompt="Be brief.")
    adapter_in(folder / "b", folder / "base", seed=5, use_dora=True)
    return folder


def alone(session: Session, prompt: str) -> Completion:
    voice = session.voice()
    ids = voice.renderer.prompt_ids(voice.conversation(prompt))
    return stream(session.model, voice.tokenizer, ids, **voice.settings(OPTIONS)).completion


@pytest.mark.slow
def test_each_voice_answers_as_it_does_alone(place: Path) -> None:
    told: list[Event] = []
    session = open_session(ModelRequest(None, [f"a={place / 'a'}", f"b={place / 'b'}"]))
    compared = compare(session, PROMPTS, options=OPTIONS, batch_size=2, observer=told.append)
    singles = {
        "base": open_session(ModelRequest(str(place / "base"), dtype="float32")),
        "a": open_session(ModelRequest(str(place / "a"))),
        "b": open_session(ModelRequest(str(place / "b"))),
    }
    assert [each.prompt for each in compared] == list(PROMPTS)
    for each in compared:
        assert list(each.completions) == list(singles)
        for name, completion in each.completions.items():
            expected = alone(singles[name], each.prompt)
            assert (completion.prompt, completion.token_ids) == (expected.prompt, expected.token_ids)
    assert len({completion.token_ids for completion in compared[0].completions.values()}) == 3
    assert told == [Progress("answers", done, 9) for done in (3, 6, 9)]


def test_a_base_alone_has_nothing_to_be_compared_with(place: Path) -> None:
    session = open_session(ModelRequest(str(place / "base")))
    with pytest.raises(AdapterError, match="no adapter to compare the base with"):
        compare(session, PROMPTS, options=OPTIONS, batch_size=2, observer=lambda _: None)
