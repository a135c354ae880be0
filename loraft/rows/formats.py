"""Rows in the field's formats, turned into what they say: a conversation, a completion, a text and its class.

A row that does not fit is an error that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from loraft.config.choices import RowFormat
from loraft.errors import DataError
from loraft.rows.fields import Columns, Fields, class_label, kind, shown, text_in_language
from loraft.rows.other_names import instead_of_a_turn, instead_of_content
from loraft.rows.row import Row
from loraft.rows.turns import calls_of_text, check_arguments, says_trained

IMAGES = ("images", "image")
"""Columns of rows with pictures."""
THOUGHTS = ("reasoning_content", "thinking")
"""The keys of a turn that hold what was thought before it was said."""
MORE = ("tool_calls", "tool_call_id", "name", *THOUGHTS)
"""The keys of a turn that templates print besides; those for tools first."""
CALLS = "function_call"
"""The role of an assistant's turn whose text is a call of a tool, or a list of calls, as JSON."""


class TurnKeys(NamedTuple):
    """How a format holds conversations: its column, the keys of a turn, and what its roles are called here."""

    column: str
    role: str
    content: str
    roles: Mapping[str, str]


CHATS: Mapping[str, TurnKeys] = {
    "messages": TurnKeys("messages", "role", "content", {of: of for of in ("system", "user", "assistant", "tool")}),
    "sharegpt": TurnKeys("conversations", "from", "value", {
        "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
        "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
        "system": "system", "tool": "tool", "observation": "tool", CALLS: "assistant",
    }),
}  # fmt: skip
"""Files have the turns of one in the column of the other too, so each turn tells by its keys which it is of."""
ASKED = ("prompt", *(chat.column for chat in CHATS.values()))
"""The columns that may hold what a row asks, one of them in a row."""
ASKED_FOR_A_TEXT = ("source", "translation")
"""Those of an encoder-decoder, where there is no other."""
ASKED_OTHERWISE = ("instruction", *ASKED_FOR_A_TEXT)
"""Those that are looked for in this order where there is none of `ASKED`; an instruction has its `input`."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: What is said.
        train: Whether an assistant's turn is trained; None leaves it to `data.train_on`.
        more: What else the template gets: the assistant's `tool_calls` and what it thought, and of a tool `name` and
            `tool_call_id`.
    """

    role: str
    content: str
    train: bool | None = None
    more: Mapping[str, object] = field(default_factory=dict, hash=False)


Tools = tuple[Mapping[str, Any], ...]
"""What the assistant may call, as JSON schemas."""


@dataclass(frozen=True)
class Conversation:
    """Turns that a chat template renders, and the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: Tools = ()

    @property
    def system_prompt(self) -> str | None:
        """The system prompt that it begins with; None where there is none."""
        return self.messages[0].content if self.messages[0].role == "system" else None


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt and what follows it, as plain text."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Plain text, trained on whole."""

    text: str


@dataclass(frozen=True)
class Seq2SeqRecord:
    """A source, and the target that answers it."""

    source: str
    target: str


@dataclass(frozen=True)
class ClassificationRecord:
    """A text, or a pair of texts, with the name or the number of the class it belongs to."""

    text: str
    second: str | None
    label: str | int


Answer = Conversation | PromptCompletion | Seq2SeqRecord
"""An answer behind its prompt."""


@dataclass(frozen=True)
class PreferencePair:
    """A better and a worse answer, each behind the prompt that both follow."""

    chosen: Answer
    rejected: Answer


@dataclass(frozen=True)
class UnpairedAnswer:
    """An answer behind its prompt, and whether it is one to be given."""

    answer: Answer
    desirable: bool


Record = Conversation | PromptCompletion | Text | Seq2SeqRecord | ClassificationRecord | PreferencePair | UnpairedAnswer
"""What a row says; each task has its own kinds."""


@dataclass(frozen=True)
class LanguagePair:
    """The languages of a translation: keys of `translation` rows, or codes such as `fr_XX` that begin with a key."""

    source: str | None = None
    target: str | None = None


NO_LANGUAGES = LanguagePair()


def to_record(
    row: Row,
    row_format: RowFormat,
    columns: Columns,
    *,
    languages: LanguagePair = NO_LANGUAGES,
    as_pair: bool = False,
) -> Record:
    """What a row says.

    `languages` says which of a `translation` row are the source and the target. `as_pair` gives a source and a target,
    whatever the format; without it an instruction becomes a conversation.

    Raises:
        DataError: A field is missing, empty or of the wrong type; it is named with file and line.
    """
    fields = Fields(row, columns)
    for name in IMAGES:
        if row.values.get(name) and name not in columns.values():
            remedy = "Leave the column out of the rows, where the text alone is to be learned."
            raise fields.wrong(name, "there are images in the row, and loraft trains text alone (yet)", remedy)
    if row_format == "classification":
        return ClassificationRecord(fields.text("text"), fields.optional_text("text_pair") or None, class_label(fields))
    if row_format == "prompt_completion":
        if isinstance(fields.value("prompt"), list | tuple):
            remedy = fields.turns_of_both("prompt", "completion")
            raise fields.wrong("prompt", "must be text; found a list, and turns are those of a conversation", remedy)
        return (Seq2SeqRecord if as_pair else PromptCompletion)(fields.text("prompt"), fields.text("completion"))
    if row_format == "alpaca":
        return _instruction(fields, as_pair=as_pair)
    if as_pair:
        return _pair(fields, languages)
    if row_format in CHATS:
        return _conversation(fields, CHATS[row_format])
    assert row_format == "text", f"{row_format} is read above"
    return Text(fields.text("text"))


def to_question(
    row: Row, languages: LanguagePair = NO_LANGUAGES, columns: Columns = MappingProxyType({})
) -> Conversation:
    """What a row asks: its prompt, its source, or its conversation up to where an answer is due; its `system` before.

    An empty `system` says that there is none; a row without one leaves it to whoever asks.

    `languages` says which of a `translation` row is the source. A `prompt` among `columns` is asked, whatever others
    there are.

    Raises:
        DataError: A field is missing, empty or of the wrong type; it is named with file and line.
    """
    fields = Fields(row, columns)
    # Beside what comes first, `source` is a column like any other: where a row comes from, say.
    in_order = ({*columns} & {*ASKED, *ASKED_OTHERWISE}, ASKED, ("instruction",), ASKED_FOR_A_TEXT)
    there = next((has for names in in_order if (has := [name for name in names if fields.has(name)])), [])
    if len(there) != 1:
        found = " and ".join(there) or ", ".join(sorted(row.values)) or "nothing"
        needed = f"{', '.join((*ASKED, *ASKED_OTHERWISE)[:-1])} and {ASKED_OTHERWISE[-1]}"
        raise DataError(f"needs one of {needed}; it has {found}", where=row.where)
    (name,) = there
    chat = next((chat for chat in CHATS.values() if chat.column == name), None)
    if chat is not None:
        asked = turns_of(fields, chat, teach=False)
    elif name == "translation":
        asked = (Message("user", text_in_language(fields, fields.mapping(name), "data.source_lang", languages.source)),)
    else:
        asked = (Message("user", instruction_of(fields) if name == "instruction" else fields.text(name)),)
    if asked[-1].role not in ("user", "tool"):
        message = f"is the {asked[-1].role}'s, and an answer follows a user's"
        raise fields.wrong(f"{name}[{len(asked) - 1}]", message)
    turns = after_system(fields, asked) if fields.optional("system") is not None else asked
    return Conversation(turns, () if name in ASKED_FOR_A_TEXT else tools_of(fields, chat or CHATS["messages"]))


def instruction_of(fields: Fields) -> str:
    """An instruction, and what it is given to work on."""
    given = fields.optional_text("input")
    return fields.text("instruction") + (f"\n\n{given}" if given else "")


def _instruction(fields: Fields, *, as_pair: bool) -> Seq2SeqRecord | Conversation:
    asked, answer = instruction_of(fields), fields.text("output")
    if as_pair:
        return Seq2SeqRecord(asked, answer)
    turns, system = (Message("user", asked), Message("assistant", answer)), fields.optional_text("system")
    return Conversation((Message("system", system), *turns) if system else turns)


def _pair(fields: Fields, languages: LanguagePair) -> Seq2SeqRecord:
    renamed = any(name in fields.columns and fields.has(name) for name in ("source", "target"))
    if renamed or not fields.has("translation"):
        return Seq2SeqRecord(fields.text("source"), fields.text("target"))
    texts = fields.mapping("translation")
    source = text_in_language(fields, texts, "data.source_lang", languages.source)
    return Seq2SeqRecord(source, text_in_language(fields, texts, "data.target_lang", languages.target))


def _conversation(fields: Fields, chat: TurnKeys) -> Conversation:
    messages = turns_of(fields, chat)
    if not any(message.role == "assistant" for message in messages):
        raise fields.wrong(chat.column, "no turn is the assistant's, so there is nothing to train on")
    turns = after_system(fields, messages) if fields.optional_text("system") else messages
    return Conversation(turns, tools_of(fields, chat))


def after_system(fields: Fields, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages after the system prompt of the column `system`, which may stand among them once more."""
    system = fields.optional_text("system")
    if messages[0].role != "system":
        return (Message("system", system), *messages)
    if messages[0].content.strip() != system.strip():
        raise fields.wrong("system", "is another system prompt than the one that the turns begin with")
    return messages


def tools_of(fields: Fields, chat: TurnKeys = CHATS["messages"]) -> Tools:
    """The tools of a row, as a list or as JSON text, which is how files with columns of one type keep them."""
    value = fields.optional("tools")
    if isinstance(value, str) and value.strip():
        value = fields.json("tools", value, "is text that is no JSON")
    if not value:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise fields.wrong("tools", f"must be a list of objects; found {kind(value)}")
    fields.clean_inside("tools", value)
    if chat.column != "conversations":
        return tuple(value)
    # There a tool is what it is called and takes; templates take it as a function, as transformers says it.
    return tuple(
        {"type": "function", "function": tool} if "name" in tool and "function" not in tool else tool for tool in value
    )


def turns_of(fields: Fields, chat: TurnKeys, *, teach: bool = True) -> tuple[Message, ...]:
    """The turns in the column of `chat`, each checked; those that `teach` have no empty answer among them."""
    turns, name = enumerate(fields.sequence(chat.column)), chat.column
    return tuple(_message(fields, f"{name}[{index}]", turn, chat, teach=teach) for index, turn in turns)


def _message(fields: Fields, place: str, turn: object, chat: TurnKeys, *, teach: bool) -> Message:
    if not isinstance(turn, Mapping) or (spoken := _spoken_as(turn, chat)) is None:
        raise _no_turn(fields, place, turn, chat)
    chat = spoken
    role, content, said = turn.get(chat.role), turn.get(chat.content), f"{place}.{chat.content}"
    if not isinstance(role, str) or role not in chat.roles:
        known = ", ".join(sorted(chat.roles))
        raise fields.wrong(f"{place}.{chat.role}", f"must be one of {known}; found {shown(role)}")
    more = {key: turn[key] for key in MORE if turn.get(key)}
    calls = more.get("tool_calls")
    if calls is not None and not (isinstance(calls, list | tuple) and all(isinstance(call, Mapping) for call in calls)):
        raise fields.wrong(f"{place}.tool_calls", f"must be a list of objects; found {kind(calls)}")
    if content is None and calls:
        content = ""
    if role == CALLS and isinstance(content, str):
        more["tool_calls"] = calls = calls_of_text(fields, said, content)
        content = ""
    if isinstance(content, list | tuple):
        content = _texts_of_parts(fields, said, content)
    # Only an assistant's empty turn has nothing to teach; an empty system prompt is a choice.
    if not isinstance(content, str):
        raise fields.wrong(said, f"must be text; found {kind(content)}", instead_of_content(turn))
    if teach and not content.strip() and chat.roles[role] == "assistant" and not calls:
        raise fields.wrong(said, "is empty")
    for key, value in more.items():
        fields.clean_inside(f"{place}.{key}", value)
    check_arguments(fields, f"{place}.tool_calls", calls or ())
    train = says_trained(fields, place, turn, chat.roles[role])
    return Message(chat.roles[role], fields.clean(said, content), train, more)


def _spoken_as(turn: Mapping[object, object], chat: TurnKeys) -> TurnKeys | None:
    return next((each for each in (chat, *CHATS.values()) if each.role in turn), None)


def _no_turn(fields: Fields, place: str, turn: object, chat: TurnKeys) -> DataError:
    """What is wrong with what says nothing of who speaks."""
    helps = instead_of_a_turn(fields.columns.get(chat.column, chat.column), turn)
    if isinstance(turn, Mapping):
        found = ", ".join(map(str, turn)) or "nothing"
        return fields.wrong(f"{place}.{chat.role}", f"is missing; the turn has {found}", helps)
    return fields.wrong(place, f"must be an object with {chat.role} and {chat.content}; found {kind(turn)}", helps)


def _texts_of_parts(fields: Fields, place: str, parts: Sequence[object]) -> str:
    """A content that is a list of parts, as those of multimodal models are: all must be text."""
    texts = []
    for index, part in enumerate(parts):
        kind_of, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
        if kind_of != "text" or not isinstance(text, str):
            what = f"is {shown(kind_of)}, and loraft trains text alone (yet)" if isinstance(kind_of, str) else None
            raise fields.wrong(f"{place}[{index}]", what or "must be an object with type: text and a text")
        texts.append(text)
    return "".join(texts)
