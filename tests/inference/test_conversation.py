"""A conversation: what is read of it each turn, and that its answers are those of a fresh reading."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loraft.errors import AdapterError, ConfigError, DataError, ModelError, NonFiniteError
from loraft.inference import conversation as conversations
from loraft.inference.conversation import ChatSession, save_conversation
from loraft.inference.decoder_state import DecoderState
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.session import Session, open_session
from loraft.models.modules import wrapped_model
from loraft.rows.formats import Message, to_record
from loraft.rows.row import Row
from loraft.tasks import TASKS, detect_format
from loraft.tokenization.plain_text_rows import Seq2SeqRenderer
from tests.faults.small_disk import files_of_at_most
from tests.inference.voices import adapter_in, base_in
from tests.tokenization.test_template_printer import renderer_of
from tests.tokenization.test_trl_templates import TEMPLATES

SHORT = GenerationRequest(max_new_tokens=12)
TURNS = ("hello, the order is late", "and the customer?", "so", "the answer is in the text")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    base = base_in(folder / "base")
    adapter_in(folder / "a", base, seed=1, system_prompt="Be brief.")
    adapter_in(folder / "b", base, seed=2)
    return folder


@pytest.fixture(scope="module")
def session(place: Path) -> Session:
    return open_session(ModelRequest(None, [f"a={place / 'a'}", f"b={place / 'b'}"]))


def plain(folder: Path, model_type: str = "llama", **sizes: object) -> Session:
    return open_session(ModelRequest(str(base_in(folder, model_type, **sizes)), dtype="float32"))


@contextmanager
def counted(session: Session) -> Iterator[list[int]]:
    """How many tokens each forward of the model is given."""
    lengths: list[int] = []

    def count(_: object, __: object, given: dict[str, torch.Tensor]) -> None:
        lengths.append(given["input_ids"].shape[1])

    handle = wrapped_model(session.model).register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


def said(conversation: ChatSession, text: str) -> tuple[int, ...]:
    """The tokens of the answer to `text`."""
    return tuple(token.id for token in conversation.ask(text))


def fresh(conversation: ChatSession, text: str) -> tuple[int, ...]:
    """The answer of a conversation that said the same and has read nothing."""
    other = ChatSession(conversation.session, conversation.options)
    other.voice = conversation.voice
    other._messages = list(conversation._messages)
    return said(other, text)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom", "mistral", "gemma2", "cohere2", "gpt_neox"])
def test_each_turn_reads_only_what_is_new_and_answers_as_a_fresh_reading(tmp_path: Path, model_type: str) -> None:
    """Float32, token for token; sliding windows of 8 tokens, learned positions and ALiBi among them."""
    session = plain(tmp_path / "base", model_type)
    conversation = ChatSession(session, SHORT)
    for turn, text in enumerate(TURNS):
        expected = fresh(conversation, text)
        with counted(session) as lengths:
            reply = conversation.ask(text)
            answer = tuple(token.id for token in reply)
        assert answer == expected
        assert lengths[0] == reply.prompt_tokens - reply.held
        assert set(lengths[1:]) <= {1}
        assert (reply.held > 0) == (turn > 0)


def test_what_the_cache_holds_is_not_read_again(tmp_path: Path) -> None:
    """A template that prints turns as they were: all but the last token of the answer and what follows it is held."""
    session = plain(tmp_path / "base")
    conversation = ChatSession(session, GenerationRequest(max_new_tokens=1))
    before = 0
    for text in TURNS:
        reply = conversation.ask(text)
        list(reply)
        assert reply.held == before, "the prompt of the turn before is held whole"
        before = reply.prompt_tokens


def test_after_undo_system_and_settings_the_answers_are_those_of_a_fresh_reading(tmp_path: Path) -> None:
    conversation = ChatSession(plain(tmp_path / "base"), SHORT)
    for text in TURNS[:3]:
        said(conversation, text)
    assert conversation.undo() == Message("user", TURNS[2])
    assert conversation.undo() == Message("user", TURNS[1])
    reply = conversation.ask("another question")
    assert reply.held > 10
    reply.stop()
    conversation.undo()
    assert said(conversation, "another") == fresh_after(conversation, "another")
    conversation.set_options(GenerationRequest(system="the customer is late", max_new_tokens=8))
    expected = fresh(conversation, "what")
    reply = conversation.ask("what")
    assert tuple(token.id for token in reply) == expected
    assert reply.held < 6, "the system prompt comes first: nearly all is read anew"
    conversation.reset()
    assert conversation.messages == (Message("system", "the customer is late"),)
    first = conversation.ask("hello")
    assert first.held == 0
    assert conversation.undo() is None, "an answer that was never begun is no part of the conversation"


def fresh_after(conversation: ChatSession, text: str) -> tuple[int, ...]:
    """As `fresh`, for a question that was just asked."""
    conversation.undo()
    return fresh(conversation, text)


def test_a_conversation_for_which_there_is_no_room_leaves_nothing_and_can_be_saved_again(tmp_path: Path) -> None:
    messages, file = [Message("user", "a"), Message("assistant", "b" * 5000)], tmp_path / "talk.jsonl"
    with files_of_at_most(1000), pytest.raises(DataError, match="disk"):
        save_conversation(file, messages)
    assert list(tmp_path.iterdir()) == []
    assert save_conversation(file, messages) == 1


@pytest.mark.slow
def test_each_voice_has_a_cache_of_its_own(session: Session) -> None:
    """Keys and values are made with the adapter that acts: never is one voice's cache read by another."""
    conversation = ChatSession(session, SHORT)
    for name in ("a", "b", None, "a", None, "b", "b"):
        conversation.speak_as(name)
        expected = fresh(conversation, "the order")
        assert said(conversation, "the order") == expected
    conversation.speak_as("a")
    assert conversation.system == "Be brief."
    assert conversation.ask("so").held > 30, "the voice's own cache is still there"
    conversation.speak_as("b")
    assert conversation.system is None


def test_an_unknown_voice_is_refused_and_the_voice_stays(session: Session) -> None:
    conversation = ChatSession(session, SHORT)
    with pytest.raises(AdapterError, match="no adapter 'c' here"):
        conversation.speak_as("c")
    assert conversation.voice.name == "a"


@pytest.mark.parametrize(
    "options",
    [
        GenerationRequest(temperature=-1),
        GenerationRequest(top_k=0),
        GenerationRequest(top_p=2),
        GenerationRequest(max_new_tokens=0),
        GenerationRequest(seed=-1),
    ],
)
def test_options_out_of_bounds_are_refused_and_the_old_ones_stay(session: Session, options: GenerationRequest) -> None:
    conversation = ChatSession(session, SHORT)
    with pytest.raises(ConfigError):
        conversation.set_options(options)
    assert conversation.options == SHORT
    with pytest.raises(ConfigError):
        ChatSession(session, options)


def test_a_stopped_answer_stays_as_far_as_it_was_given(tmp_path: Path) -> None:
    conversation = ChatSession(plain(tmp_path / "base"), SHORT)
    reply = conversation.ask("hello")
    text = "".join(next(reply).text for _ in range(4))
    reply.stop()
    assert reply.completion is None
    assert conversation.messages == (Message("user", "hello"), Message("assistant", text))
    assert list(reply) == []
    expected = fresh(conversation, "go on")
    again = conversation.ask("go on")
    assert tuple(token.id for token in again) == expected
    assert again.held > 0


def test_an_answer_stopped_before_its_first_text_is_taken_back_with_its_question(tmp_path: Path) -> None:
    conversation = ChatSession(plain(tmp_path / "base"), SHORT)
    conversation.ask("hello").stop()
    assert conversation.messages == ()
    assert said(conversation, "hello") == fresh_after(conversation, "hello")


@pytest.mark.parametrize("error", [KeyboardInterrupt, NonFiniteError("not finite")])
def test_what_fails_is_taken_back_with_all_that_was_half_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    conversation = ChatSession(plain(tmp_path / "base"), SHORT)
    said(conversation, TURNS[0])
    before, read = conversation.messages, DecoderState.read

    def broken(context: DecoderState, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        logits = read(context, ids, mask)
        if context.length > 45:
            raise error
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(DecoderState, "read", broken)
        with pytest.raises((KeyboardInterrupt, NonFiniteError)):
            list(conversation.ask(TURNS[1]))
    assert conversation.messages == before
    assert fresh(conversation, TURNS[1]) == said(conversation, TURNS[1])


def test_the_end_of_learned_positions_is_told_and_reset_helps(tmp_path: Path) -> None:
    conversation = ChatSession(plain(tmp_path / "base", "gpt2", max_position_embeddings=48), SHORT)
    assert conversation.positions == 48
    said(conversation, "the order is late")
    before = conversation.messages
    with pytest.raises(DataError, match=r"this model has learned 48 positions(.|\n)*Begin anew"):
        conversation.ask("the answer is in the text and the customer said that the order is late")
    assert conversation.messages == before
    conversation.undo()
    conversation.reset()
    assert said(conversation, "the order")


def test_the_length_that_a_model_was_trained_for_bounds_what_is_asked(tmp_path: Path) -> None:
    conversation = ChatSession(plain(tmp_path / "base", max_position_embeddings=64), SHORT)
    assert (conversation.positions, conversation.trained_length) == (None, 64)
    assert said(conversation, "the order is late")
    before = conversation.messages
    with pytest.raises(DataError, match=r"the conversation has \d+ tokens, and this model has learned 64 positions"):
        conversation.ask("the order is late and the customer is late " * 9)
    assert conversation.messages == before


def test_a_base_without_a_template_says_that_it_converses_in_chatml(tmp_path: Path) -> None:
    (base_in(tmp_path / "base") / "chat_template.jinja").unlink()
    conversation = ChatSession(open_session(ModelRequest(str(tmp_path / "base"), dtype="float32")), SHORT)
    assert any("chatml" in note for note in conversation.notes)
    assert said(conversation, "hello") == fresh_after(conversation, "hello")


def test_a_model_that_reads_texts_holds_no_conversation(session: Session) -> None:
    voice = session.voice()
    with pytest.raises(ModelError, match="holds no conversation"):
        type(voice)(voice.name, voice.folder, voice.tokenizer, Seq2SeqRenderer(voice.tokenizer), None).conversing()


def test_a_saved_conversation_is_a_row_that_loraft_trains_on(tmp_path: Path) -> None:
    messages = [
        Message("system", "Be brief."), Message("user", "é?"), Message("assistant", "yes"),
        Message("user", "empty?"), Message("assistant", " "), Message("user", "more?"), Message("assistant", "no"),
    ]  # fmt: skip
    assert save_conversation(tmp_path / "talk.jsonl", messages) == 2
    values = json.loads((tmp_path / "talk.jsonl").read_text())
    record = to_record(Row(values, "talk.jsonl:1"), detect_format(values, TASKS["causal_lm"]), {})
    assert record.messages == (*messages[:3], *messages[5:])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("prepare", "name", "message"),
    [
        (lambda folder: (folder / "a.jsonl").write_text("mine"), "a.jsonl", "there already"),
        (lambda _: None, "nowhere/a.jsonl", "cannot be written"),
        (lambda _: None, "a.txt", "Name it a.jsonl"),
        (lambda folder: (folder / "b.jsonl").mkdir(), "b.jsonl", "there already"),
    ],
)
def test_saving_never_writes_over_anything(
    tmp_path: Path, prepare: Callable[[Path], object], name: str, message: str
) -> None:
    prepare(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=message):
        save_conversation(tmp_path / name, [Message("user", "a"), Message("assistant", "b")])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(DataError, match="no answer"):
        save_conversation(tmp_path / "new.jsonl", [Message("user", "a")])


@pytest.mark.slow
def test_smollm2_reads_its_history_once(smollm2: Path) -> None:
    session = open_session(ModelRequest(str(smollm2), dtype="float32"))
    conversation = ChatSession(session, GenerationRequest(max_new_tokens=24))
    for text in ("What is the capital of France?", "And of Italy?", "Which of them is larger?"):
        expected = fresh(conversation, text)
        with counted(session) as lengths:
            assert said(conversation, text) == expected
        assert lengths[0] < 50


def test_names_of_channels_do_not_come_back_as_words(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt-oss says in special tokens which words are thought and which are the answer: without them all is one text."""
    renderer = renderer_of(TEMPLATES["gptoss"])
    conversation = ChatSession(session, SHORT)
    conversation.voice = replace(conversation.voice, tokenizer=renderer.tokenizer, renderer=renderer)
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    ids = renderer.tokenizer.encode(f"{thought}<|channel|>final<|message|>Yes.", add_special_tokens=False)
    shown = renderer.tokenizer.decode(ids, skip_special_tokens=True)
    assert shown == "analysisHm.assistantfinalYes."

    class Answered(list[SimpleNamespace]):
        completion = SimpleNamespace(completion=shown, token_ids=ids)

    monkeypatch.setattr(conversations, "stream", lambda *_, **__: Answered())
    list(conversation.ask("Is it?"))
    assert conversation.messages[-2:] == (Message("user", "Is it?"), Message("assistant", "Yes."))
