"""Rows in the field's formats, turned into what is rendered: a conversation, a completion, or plain text.

A row of prompts is turned into what it asks. It is pure. A row that
does not fit is an error that names the field.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from loraft.config.choices import RowFormat
from loraft.errors import DataError
from loraft.rows.fields import Fields, clean, column_of, kind, shown
from loraft.rows.readers import RepeatedKeyError, Row, loads

COLUMNS: Mapping[RowFormat, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",),),
    "alpaca": (("instruction", "output"),),
    "prompt_completion": (("prompt", "completion"),),
    "text": (("text",),),
    "translation": (("translation",), ("source", "target")),
    "classification": (("text", "label"),),
}
"""The columns that each format needs; some have alternatives."""

OPTIONAL_COLUMNS: Mapping[RowFormat, tuple[str, ...]] = {
    "messages": ("tools", "system"),
    "sharegpt": ("tools", "system"),
    "alpaca": ("input", "system"),
    "classification": ("text_pair",),
}
"""What rows of a format may have besides."""

PREFERENCES = ("chosen", "rejected", "rejected_response")
"""Columns of rows with a better and a worse answer."""
IMAGES = ("images", "image")
"""Columns of rows with pictures."""
THOUGHTS = ("reasoning_content", "thinking")
"""The keys of a turn that hold what was thought before it was said."""
MORE = ("tool_calls", "tool_call_id", "name", *THOUGHTS)
"""The keys of a turn that templates print besides; those for tools first."""
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function_call": "assistant",
}  # fmt: skip
CALLS = "function_call"
"""The role of an assistant's turn whose text is a call of a tool, or a list of calls, as JSON."""

CHATS: Mapping[str, tuple[str, str, str, Mapping[str, str]]] = {
    "messages": ("messages", "role", "content", {role: role for role in ROLES}),
    "sharegpt": ("conversations", "from", "value", SHAREGPT_ROLES),
}
"""The formats that hold conversations: column, keys of a turn, and what their roles are called here.

Files have the turns of one in the column of the other too, so each turn tells by its keys which it is of.
"""
ASKED = ("prompt", *(column for column, *_ in CHATS.values()))
"""The columns that may hold what a row asks, one of them in a row."""
ASKED_FOR_A_TEXT = ("source", "translation")
"""Those of an encoder-decoder, where there is none of `ASKED`."""


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


@dataclass(frozen=True)
class Conversation:
    """Turns that a chat template renders.

    Attributes:
        messages: The turns.
        tools: The tools that the assistant may call, as JSON schemas.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] = ()


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
    """A text, or a pair of texts, with the class it belongs to.

    Attributes:
        text: The text, or the first of two.
        second: The second text; None where there is one.
        label: The name of the class, or its number.
    """

    text: str
    second: str | None
    label: str | int


Record = Conversation | PromptCompletion | Text | Seq2SeqRecord | ClassificationRecord
"""What a row says; each task has its own kinds."""


@dataclass(frozen=True)
class LanguagePair:
    """The languages of a translation: keys of `translation` rows, or codes such as `fr_XX` that begin with a key."""

    source: str | None = None
    target: str | None = None


NO_LANGUAGES = LanguagePair()


def refuse_preferences(columns: Collection[str], renamed: Mapping[str, str]) -> None:
    """Refuse pairs of a better and a worse answer, unless `renamed` says what is to be learned of them.

    Raises:
        DataError: The columns are of such pairs.
    """
    found = [column for column in PREFERENCES if column in columns]
    if not found or renamed:
        return
    chosen = "chosen" if "chosen" in columns else None
    remedy = "name the format that is to be learned, as in data.format: messages"
    if chosen is not None:
        ours = "{prompt: prompt, completion: chosen}" if "prompt" in columns else "{messages: chosen}"
        remedy = f"to learn the better answers alone, write data.columns: {ours}"
    raise DataError(
        f"{' and '.join(found)} are of preference pairs, which loraft does not train (yet)"
        if len(found) > 1
        else f"{found[0]} is of preference pairs, which loraft does not train (yet)",
        key="data.format",
        remedy=remedy,
    )


def has_columns(columns: Collection[str], row_format: RowFormat, theirs: Mapping[str, str]) -> bool:
    """Whether `columns` are all that a format needs, under the names that `theirs` gives them."""
    return any(
        all(column_of(theirs.get(name, name), columns) in columns for name in needed) for needed in COLUMNS[row_format]
    )


def columns_of(row_format: RowFormat, *, optional: bool = True) -> tuple[str, ...]:
    """The columns that rows of a format are read from, those that they need first."""
    needed = tuple(column for columns in COLUMNS[row_format] for column in columns)
    return (*needed, *OPTIONAL_COLUMNS.get(row_format, ())) if optional else needed


def unread_columns(columns: Sequence[str], row_format: RowFormat, renamed: Mapping[str, str]) -> tuple[str, ...]:
    """Which of `columns` nothing is read from in rows of a format; `renamed` has our column names: theirs."""
    read = {column_of(renamed.get(name, name), columns) for name in columns_of(row_format)}
    return tuple(column for column in columns if column not in read)


def to_record(
    row: Row,
    row_format: RowFormat,
    columns: Mapping[str, str],
    *,
    languages: LanguagePair = NO_LANGUAGES,
    as_pair: bool = False,
) -> Record:
    """What a row says.

    Args:
        row: The row, with its place.
        row_format: The format that its columns are of.
        columns: Our column names: theirs.
        languages: Which languages of a `translation` row are the source and the target.
        as_pair: Give a source and a target, whatever the format; without it an instruction becomes a conversation.

    Raises:
        DataError: A field is missing, empty or of the wrong type; it is named with file and line.
    """
    fields = Fields(row, columns)
    for name in IMAGES:
        if row.values.get(name) and name not in columns.values():
            raise fields.wrong(name, "there are images in the row, and loraft trains text alone (yet)")
    if row_format == "classification":
        return ClassificationRecord(fields.text("text"), fields.optional_text("text_pair") or None, _label(fields))
    if as_pair:
        return _pair(fields, row_format, languages)
    if row_format in CHATS:
        return _conversation(fields, *CHATS[row_format])
    if row_format == "alpaca":
        turns = [Message("user", _instruction(fields)), Message("assistant", fields.text("output"))]
        system = fields.optional_text("system")
        return Conversation(tuple([Message("system", system), *turns] if system else turns))
    if row_format == "prompt_completion":
        return PromptCompletion(fields.text("prompt"), fields.text("completion"))
    assert row_format == "text", f"{row_format} is read above"
    return Text(fields.text("text"))


def _instruction(fields: Fields) -> str:
    given = fields.optional_text("input")
    return fields.text("instruction") + (f"\n\n{given}" if given else "")


def _pair(fields: Fields, row_format: RowFormat, languages: LanguagePair) -> Seq2SeqRecord:
    if row_format == "alpaca":
        return Seq2SeqRecord(_instruction(fields), fields.text("output"))
    if row_format == "prompt_completion":
        return Seq2SeqRecord(fields.text("prompt"), fields.text("completion"))
    if fields.renames("source", "target") or not fields.has("translation"):
        return Seq2SeqRecord(fields.text("source"), fields.text("target"))
    texts = fields.mapping("translation")
    return Seq2SeqRecord(*(_in_language(fields, texts, key, code) for key, code in
                  (("data.source_lang", languages.source), ("data.target_lang", languages.target))))  # fmt: skip


OTHERWISE = (
    "Where rows call a language otherwise than the tokenizer, a config names the texts, "
    "data.columns: {source: translation.en, target: translation.fr}; or call them source and target in the rows."
)
"""What helps where rows say `en` and a tokenizer `eng_Latn`."""


def _in_language(fields: Fields, texts: Mapping[str, object], key: str, code: str | None) -> str:
    """The text of one language; a code such as `fr_XX` finds `fr` too."""
    found = ", ".join(sorted(texts)) or "none"
    if code is None:
        raise DataError(f"is not set, and the rows have the languages {found}", key=key, remedy="Name one of them.")
    name = next((name for name in (code, code.split("_")[0]) if name in texts), None)
    if name is None:
        raise fields.wrong(
            "translation", f"has no text in {code} ({key}); it has {found}", OTHERWISE if "_" in code else None
        )
    text = texts[name]
    if not isinstance(text, str):
        raise fields.wrong(f"translation.{name}", f"must be text; found {kind(text)}")
    if not text.strip():
        raise fields.wrong(f"translation.{name}", "is empty")
    return clean(fields, f"translation.{name}", text)


DECIMAL = re.compile(r"\s*[-+]?\d*\.\d+\s*")


def _label(fields: Fields) -> str | int:
    value = fields.value("label")
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise fields.wrong(
                "label",
                f"has {len(value)} labels, and a row belongs to one class",
                "Write one row a label, or keep the main one.",
            )
        if not value:
            raise fields.wrong("label", "is an empty list")
        (value,) = value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) or (isinstance(value, str) and DECIMAL.fullmatch(value)):
        remedy = "Scores are for regression, which loraft has not."
        if float(value).is_integer():
            remedy = f"Write {float(value):.0f}: pandas makes a column of whole numbers decimal where one is missing."
        raise fields.wrong("label", f"is {value}, and a class is text or a whole number", remedy)
    if isinstance(value, int):
        return value
    if not isinstance(value, str):
        raise fields.wrong("label", f"must be text or a whole number; found {kind(value)}")
    if not value.strip():
        raise fields.wrong("label", "is empty")
    return clean(fields, "label", value).strip()


def to_question(row: Row, languages: LanguagePair = NO_LANGUAGES, prompt: str | None = None) -> tuple[Message, ...]:
    """What a row asks: its prompt, its source, or its conversation up to where an answer is due; its `system` before.

    An empty `system` says that there is none; a row without one leaves it to whoever asks.

    Args:
        row: The row, with its place.
        languages: Which language of a `translation` row is the source.
        prompt: The column with the prompts, whatever others there are.

    Raises:
        DataError: A field is missing, empty or of the wrong type; it is named with file and line.
    """
    fields = Fields(row, {"prompt": prompt} if prompt else {})
    there = [name for name in ASKED if name in row.values] if prompt is None else ["prompt"]
    # Beside a prompt, `source` is a column like any other: where a row comes from, say.
    there = there or [name for name in ASKED_FOR_A_TEXT if name in row.values]
    if len(there) != 1:
        found = " and ".join(there) or ", ".join(sorted(row.values)) or "nothing"
        needed = f"{', '.join((*ASKED, *ASKED_FOR_A_TEXT)[:-1])} and {ASKED_FOR_A_TEXT[-1]}"
        raise DataError(f"needs one of {needed}; it has {found}", where=row.where)
    if there[0] in ("prompt", "source"):
        asked: tuple[Message, ...] = (Message("user", fields.text(there[0])),)
    elif there == ["translation"]:
        texts = fields.mapping("translation")
        asked = (Message("user", _in_language(fields, texts, "data.source_lang", languages.source)),)
    else:
        asked = _messages(fields, *next(chat for chat in CHATS.values() if chat[0] == there[0]))
    if asked[-1].role not in ("user", "tool"):
        raise fields.wrong(
            f"{there[0]}[{len(asked) - 1}]", f"is the {asked[-1].role}'s, and an answer follows a user's"
        )
    return _after_system(fields, asked) if row.values.get("system") is not None else asked


def _conversation(
    fields: Fields, column: str, role_key: str, content_key: str, roles: Mapping[str, str]
) -> Conversation:
    messages = _messages(fields, column, role_key, content_key, roles)
    if not any(message.role == "assistant" for message in messages):
        raise fields.wrong(column, "no turn is the assistant's, so there is nothing to train on")
    tools = _tools(fields)
    if column == "conversations":
        # There a tool is what it is called and takes; templates take it as a function, as transformers says it.
        tools = tuple(
            {"type": "function", "function": tool} if "name" in tool and "function" not in tool else tool
            for tool in tools
        )
    return Conversation(_after_system(fields, messages) if fields.optional_text("system") else messages, tools)


def _after_system(fields: Fields, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages after the system prompt of the column `system`, which may stand among them once more."""
    system = fields.optional_text("system")
    if messages[0].role != "system":
        return (Message("system", system), *messages)
    if messages[0].content.strip() != system.strip():
        raise fields.wrong("system", "is another system prompt than the one that the turns begin with")
    return messages


def _tools(fields: Fields) -> tuple[Mapping[str, object], ...]:
    """The tools of a row, as a list or as JSON text, which is how files with columns of one type keep them."""
    value = fields.row.values.get(fields.columns.get("tools", "tools"))
    if isinstance(value, str) and value.strip():
        try:
            value = loads(value)
        except RepeatedKeyError as error:
            raise fields.wrong("tools", str(error)) from None
        except (ValueError, RecursionError):
            raise fields.wrong("tools", "is text that is no JSON") from None
    if not value:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise fields.wrong("tools", f"must be a list of objects; found {kind(value)}")
    return tuple(value)


def _messages(
    fields: Fields, column: str, role_key: str, content_key: str, roles: Mapping[str, str]
) -> tuple[Message, ...]:
    return tuple(
        _message(fields, f"{column}[{index}]", turn, role_key, content_key, roles)
        for index, turn in enumerate(fields.sequence(column))
    )


def _texts_of_parts(fields: Fields, place: str, parts: Sequence[object]) -> str:
    """A content that is a list of parts, as those of multimodal models are: all must be text."""
    texts = []
    for index, part in enumerate(parts):
        kind_of = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind_of != "text" or not isinstance(text, str):
            what = f"is {shown(kind_of)}, and loraft trains text alone (yet)" if isinstance(kind_of, str) else None
            raise fields.wrong(f"{place}[{index}]", what or "must be an object with type: text and a text")
        texts.append(text)
    return "".join(texts)


def _calls(fields: Fields, place: str, text: str) -> list[dict[str, object]]:
    """The calls that a turn of the role `function_call` makes, as `messages` have them."""
    try:
        read = loads(text)
    except RepeatedKeyError as error:
        raise fields.wrong(place, str(error)) from None
    except (ValueError, RecursionError):
        raise fields.wrong(place, "must be a call as JSON, with name and arguments") from None
    called = read if isinstance(read, list) else [read]
    if not called or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in called):
        raise fields.wrong(place, "must be a call as JSON, with name and arguments, or a list of such calls")
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
        for call in called
    ]


def _message(
    fields: Fields, place: str, turn: object, role_key: str, content_key: str, roles: Mapping[str, str]
) -> Message:
    if not isinstance(turn, Mapping):
        raise fields.wrong(place, f"must be an object with {role_key} and {content_key}; found {kind(turn)}")
    if role_key not in turn:
        others = ((key, said, called) for _, key, said, called in CHATS.values() if key in turn)
        role_key, content_key, roles = next(others, (role_key, content_key, roles))
    role = turn.get(role_key)
    if not isinstance(role, str) or role not in roles:
        raise fields.wrong(f"{place}.{role_key}", f"must be one of {', '.join(sorted(roles))}; found {shown(role)}")
    more = {key: turn[key] for key in MORE if turn.get(key)}
    calls = more.get("tool_calls")
    if calls is not None and not (isinstance(calls, list | tuple) and all(isinstance(call, Mapping) for call in calls)):
        raise fields.wrong(f"{place}.tool_calls", f"must be a list of objects; found {kind(calls)}")
    content = turn.get(content_key)
    if content is None and calls:
        content = ""
    if role == CALLS and isinstance(content, str):
        more["tool_calls"], content = _calls(fields, f"{place}.{content_key}", content), ""
        calls = more["tool_calls"]
    if isinstance(content, list | tuple):
        content = _texts_of_parts(fields, f"{place}.{content_key}", content)
    # Only an assistant's empty turn has nothing to teach; an empty system prompt is a choice.
    if not isinstance(content, str):
        raise fields.wrong(f"{place}.{content_key}", f"must be text; found {kind(content)}")
    if not content.strip() and roles[role] == "assistant" and not calls:
        raise fields.wrong(f"{place}.{content_key}", "is empty")
    train = turn.get("train")
    if train is not None and not isinstance(train, bool):
        raise fields.wrong(f"{place}.train", f"must be true or false; found {kind(train)}")
    return Message(roles[role], clean(fields, f"{place}.{content_key}", content), train, more)
