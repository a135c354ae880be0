"""Answers that grow together, and that others join: each is what it would be alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from loraft.inference.decoder_state import DecoderState, ordinary_attention
from loraft.inference.engine import complete_batch
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.session import Session, open_session
from loraft.rows.formats import Message
from loraft.serving.jobs import Asked, Event, Failed, Grown, Job, Opened
from loraft.serving.voice_batch import HeldPrefixes, VoiceBatch
from loraft.tokenization.boundaries import Pieces
from tests.inference.voices import base_in
from tests.tiny import mostly_slow, tiny_model

WORDS = ("the order is late", "and", "hello, the customer has an answer and a question", "so", "text " * 12)
ROOM = 2**24


def opened(folder: Path, model_type: str = "llama") -> Session:
    return open_session(ModelRequest(str(base_in(folder / model_type, model_type)), dtype="float32"))


class Asking:
    """Jobs, and what was told of each."""

    def __init__(self, session: Session) -> None:
        self.session, self.voice = session, session.voice()
        self.batch = VoiceBatch(session.model, self.voice, ROOM)
        self.told: dict[Job, list[Event]] = {}

    def job(self, text: str, options: GenerationRequest, answers: int = 1) -> Job:
        events: list[Event] = []
        asked = Asked([Message("user", text)], options, plain=True, answers=answers)
        job = Job(self.voice, asked, events.append)
        self.told[job] = events
        return job

    def run(self) -> None:
        while len(self.batch):
            self.batch.step()

    def tokens(self, job: Job, choice: int = 0) -> list[tuple[str, float]]:
        """Each token as it is spelled, with its log-probability to four digits."""
        grown = [event for event in self.told[job] if isinstance(event, Grown) and event.choice == choice]
        assert [event.finish_reason for event in grown[:-1]] == [None] * (len(grown) - 1)
        assert grown[-1].finish_reason is not None
        return [(token.said.spelled, round(token.said.logprob, 3)) for event in grown for token in event.tokens]

    def alone(self, job: Job, answers: int = 1) -> list[list[tuple[str, float]]]:
        voice, prompts = self.voice, [job.prompt_ids] * answers
        done = complete_batch(self.session.model, voice.tokenizer, prompts, **voice.settings(job.asked.options))
        pieces = Pieces(voice.tokenizer)
        return [
            [(pieces.of(token_id).text, round(logprob, 3)) for token_id, logprob in zip(*both, strict=True)]
            for both in ((each.token_ids, each.logprobs) for each in done)
        ]


def settings(tokens: int) -> Sequence[GenerationRequest]:
    """Greedy and drawn, with a penalty and without: rules of every kind beside one another."""
    return (
        GenerationRequest(max_new_tokens=tokens),
        GenerationRequest(max_new_tokens=tokens // 2, temperature=0.8, seed=3),
        GenerationRequest(max_new_tokens=tokens, repetition_penalty=1.5),
        GenerationRequest(max_new_tokens=tokens * 2, temperature=1.3, top_k=9, seed=5),
        GenerationRequest(max_new_tokens=1),
    )


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "model_type", mostly_slow(("llama", "gemma2", "mistral", "gpt2", "bloom", "t5"), "llama", "t5")
)
def test_answers_that_others_join_are_those_given_alone(tmp_path: Path, model_type: str) -> None:
    """In float32: a group of three, two that join after four tokens, and the first three once more at the end."""
    asking = Asking(opened(tmp_path, model_type))
    jobs = [asking.job(text, how) for text, how in zip(WORDS, settings(12), strict=True)]
    again = [asking.job(text, how) for text, how in zip(WORDS[:3], settings(12), strict=False)]
    with ordinary_attention(asking.session.model):
        asking.batch.admit(jobs[:3])
        for _ in range(4):
            asking.batch.step()
        asking.batch.admit(jobs[3:])
        asking.run()
        asking.batch.admit(again)
        asking.run()
    for job in (*jobs, *again):
        assert [asking.tokens(job)] == asking.alone(job)


def test_several_answers_to_one_prompt_read_it_once_and_draw_from_seeds_of_their_own(tmp_path: Path) -> None:
    asking = Asking(opened(tmp_path))
    job = asking.job(WORDS[2], GenerationRequest(max_new_tokens=8, temperature=1.0, seed=7), answers=3)
    with ordinary_attention(asking.session.model):
        asking.batch.admit([job])
        asking.run()
    assert sum(isinstance(event, Opened) for event in asking.told[job]) == 1
    drawn = [asking.tokens(job, choice) for choice in range(3)]
    assert drawn == asking.alone(job, answers=3)
    assert len({tuple(tokens) for tokens in drawn}) == 3


def test_a_prompt_that_begins_as_an_earlier_one_is_read_from_there_on(tmp_path: Path) -> None:
    asking = Asking(opened(tmp_path))
    first, short = asking.job(WORDS[4], SHORT), asking.job(WORDS[1], SHORT)
    with ordinary_attention(asking.session.model):
        asking.batch.admit([first, short])
        asking.run()
        again = asking.job(WORDS[4], SHORT)
        asking.batch.admit([again])
        asking.run()
    assert opening(asking, first).held == opening(asking, short).held == 0
    assert opening(asking, again).held == len(again.prompt_ids) - 1  # the last one is read for its logits
    assert asking.tokens(again) == asking.tokens(first)


def test_of_what_was_read_the_newest_is_held_as_far_as_there_is_room() -> None:
    model, rows = tiny_model("llama"), [[number] * 20 for number in range(3, 6)]
    states = [DecoderState(model, rewinds=True) for _ in rows]
    with ordinary_attention(model):
        for state, ids in zip(states, rows, strict=True):
            state.read(torch.tensor([ids]))
    held = HeldPrefixes(2 * states[0].cache_bytes)
    for state in states:
        held.hold(state)
    assert [held.beginning_of([*ids, 9]) is not None for ids in rows] == [False, True, True]


def test_an_answer_that_nobody_waits_for_leaves_and_the_others_go_on(tmp_path: Path) -> None:
    asking = Asking(opened(tmp_path))
    jobs = [asking.job(text, SHORT) for text in WORDS[:3]]
    with ordinary_attention(asking.session.model):
        asking.batch.admit(jobs)
        asking.batch.step()
        jobs[1].cancelled = True
        asking.batch.step()
        assert len(asking.batch) == 2
        asking.run()
    for job in (jobs[0], jobs[2]):
        assert [asking.tokens(job)] == asking.alone(job)


def test_what_fails_ends_the_answers_that_were_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(opened(tmp_path))
    job = asking.job(WORDS[0], SHORT)
    none = asking.job("", SHORT)
    with ordinary_attention(asking.session.model):
        asking.batch.admit([job, none])
        weight = asking.session.loaded.model.get_output_embeddings().weight
        monkeypatch.setattr(weight, "data", weight.data * float("nan"))
        asking.run()
    (failed,) = (event.error for event in asking.told[job] if isinstance(event, Failed))
    assert "not finite" in str(failed)
    (refused,) = asking.told[none]
    assert isinstance(refused, Failed)
    assert refused.error.exit_code == 2


def opening(asking: Asking, job: Job) -> Opened:
    (told,) = (event for event in asking.told[job] if isinstance(event, Opened))
    return told


SHORT = GenerationRequest(max_new_tokens=8)


def test_a_text_that_is_gone_on_with_is_not_closed_by_its_tokenizer(tmp_path: Path) -> None:
    """Some put an end-of-text token behind every text; what stands in the prompt itself is read."""
    voice = open_session(ModelRequest(str(base_in(tmp_path / "base")))).voice()
    expected = voice.tokenizer("<|im_start|>hello<|im_end|>")["input_ids"]
    end = TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", voice.tokenizer.eos_token_id)])
    voice.tokenizer.backend_tokenizer.post_processor = end
    assert voice.tokenizer("a")["input_ids"][-1] == voice.tokenizer.eos_token_id
    text = [Message("user", "<|im_start|>hello<|im_end|>")]
    job = Job(voice, Asked(text, GenerationRequest(), plain=True), lambda _: None)
    job.open()
    assert job.prompt_ids == expected


def test_rows_join_without_padding_that_no_row_needs(tmp_path: Path) -> None:
    session = opened(tmp_path)
    contexts = []
    for ids in ([5, 6, 7, 8, 9, 10], [4, 5], [9, 8, 7]):
        context = DecoderState(session.model, rewinds=True)
        read, mask = context.begin([ids])
        context.read(read, mask)
        contexts.append(context)
    first, *others = contexts
    first.join(others)
    assert first.length == 6
    assert first.part(1).first_row == [4, 5]
    assert first.part(0, 2).first_row == [5, 6]
    first.keep([1, 2])
    first.trim()
    assert (first.length, first.first_row) == (3, [0, 4, 5])
    first.keep([1])
    first.trim()
    assert first.part(0).first_row == [9, 8, 7]
