"""What is said where answers may leave the positions that a model was trained with."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft import api
from loraft.events import Event, Note
from loraft.inference.decoder_state import ordinary_attention
from loraft.inference.prompt_limits import beyond_training
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.session import Session, open_session
from loraft.rows.formats import Message
from loraft.serving.jobs import Asked, Job
from loraft.serving.voice_batch import VoiceBatch
from tests.inference.voices import base_in
from tests.tiny import tiny_model


def told(model_type: str, tokens: int, most: int, **sizes: object) -> int:
    return len(list(beyond_training(tiny_model(model_type, **sizes), [[5] * tokens, [5]], most)))


def test_rotary_positions_beyond_those_of_training_are_told_once() -> None:
    """Of 10 tokens and 7 more the last one is not read: they take 16 positions."""
    assert told("llama", 10, 7, max_position_embeddings=16) == 0
    assert told("llama", 10, 8, max_position_embeddings=16) == 1
    scaled = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    assert told("llama", 10, 50, max_position_embeddings=16, rope_parameters=scaled) == 0


def test_nothing_is_said_where_a_prompt_is_refused_or_positions_end_or_know_no_end() -> None:
    assert told("llama", 17, 8, max_position_embeddings=16) == 0
    assert told("gpt2", 10, 50, max_position_embeddings=16) == 0
    assert told("t5", 600, 600) == told("bloom", 600, 600) == 0


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return open_session(ModelRequest(str(base_in(tmp_path / "base", max_position_embeddings=48))))


@pytest.mark.slow
def test_it_is_told_before_answers_that_may_go_on(session: Session) -> None:
    opened = api.load(str(session.loaded.folder))
    assert isinstance(opened, api.OpenModel)
    long, short = (GenerationRequest(max_new_tokens=most, temperature=0) for most in (60, 4))
    for options, count in ((long, 1), (short, 0)):
        heard: list[Event] = []
        notes = opened.generate("the order", options=options).notes
        assert sum("48 positions" in note for note in notes) == count
        opened.complete(["the order", "late"], options=options, observer=heard.append)
        assert sum("48 positions" in event.text for event in heard if isinstance(event, Note)) == count


def test_a_server_tells_it_once(session: Session) -> None:
    heard: list[Event] = []
    voice = session.voice()
    batch = VoiceBatch(session.model, voice, 0, heard.append)
    options = GenerationRequest(max_new_tokens=60, temperature=0)
    with session.speaking(voice), ordinary_attention(session.model):
        for _ in range(2):
            batch.admit([Job(voice, Asked([Message("user", "the order")], options), lambda _: None)])
    assert [type(event) for event in heard] == [Note]
