"""What a client may send, as OpenAI's interface has it: what would change an answer and is not done here is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from loraft.errors import DataError
from loraft.inference.requests import GenerationRequest
from loraft.rows.formats import Message, to_question
from loraft.rows.row import Row
from loraft.serving.jobs import Asked

MOST_ANSWERS = 16
"""The most answers to one prompt."""
MOST_LIKELIEST = 20
"""For how many tokens in one place a log-probability may be asked."""


Kind = TypeVar("Kind", bound="Body")


class BadRequestError(Exception):
    """A request that is refused; `status` is that of HTTP, and `param` the key that is at fault."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code


class _Strict(BaseModel):
    """An object in which `null` is what is not said."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _said(cls, body: object) -> object:
        return {key: value for key, value in body.items() if value is not None} if isinstance(body, dict) else body


class _StreamOptions(_Strict):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class _ResponseFormat(_Strict):
    type: Literal["text"]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Stops = Annotated[list[str], BeforeValidator(_as_list)]
"""One text, or several."""


def _one_text(value: object) -> object:
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if not isinstance(value, str):
        raise PydanticCustomError("one_text", "must be one text: send several one by one, and tokens as text")
    return value


Prompt = Annotated[str, BeforeValidator(_one_text)]
"""One text, which some clients send as a list of one."""


def _with_name(tool: dict[str, Any]) -> dict[str, Any]:
    described = tool.get("function", tool)
    if not isinstance(described, dict) or not isinstance(described.get("name"), str) or not described["name"]:
        raise PydanticCustomError("no_name", "has no name: a tool is here a function, with function.name")
    return tool


Tool = Annotated[dict[str, Any], AfterValidator(_with_name)]
"""A function that may be called; by its name is found whether the template prints it."""


class Body(_Strict):
    """What both kinds of request may say.

    The keys without an effect are for the client's own books. Those that allow one value do nothing with it.
    """

    model: str
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**32)
    stop: Stops | None = None
    n: int = Field(1, ge=1, le=MOST_ANSWERS)
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    logit_bias: dict[str, Literal[0]] | None = None
    user: str = ""
    metadata: dict[str, Any] | None = None
    store: bool = False
    service_tier: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def counts_all_along(self) -> bool:
        """Whether each piece of a stream tells them so far, as vLLM does it."""
        return self.includes_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    def options(self, most_tokens: int) -> GenerationRequest:
        """How it is answered; up to `most_tokens` may be asked for."""
        asked, key = self.asked_tokens
        if asked is not None and asked > most_tokens:
            message = f"{asked:,} is more than the {most_tokens:,} tokens that this server gives"
            raise BadRequestError(message, param=key)
        same = {key: getattr(self, key) for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
        return GenerationRequest(max_new_tokens=asked, seed=self.seed, stop=tuple(self.stop or ()), **same)

    @property
    def asked_tokens(self) -> tuple[int | None, str]:
        """The most tokens of an answer, and what the client calls them."""
        return self.max_tokens, "max_tokens"

    def asked(self, most_tokens: int) -> Asked:
        """What the model's thread is asked."""
        raise NotImplementedError


class CompletionBody(Body):
    """A request to `/v1/completions`: a text that is gone on with."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)
    echo: Literal[False] = False
    suffix: Literal[""] = ""
    best_of: Literal[1] = 1

    def asked(self, most_tokens: int) -> Asked:
        """What the model's thread is asked."""
        text = [Message("user", self.prompt)]
        return Asked(text, self.options(most_tokens), plain=True, answers=self.n, likeliest=self.logprobs)


class ChatBody(Body):
    """A request to `/v1/chat/completions`: a conversation up to where an answer is due."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] = "auto"
    parallel_tool_calls: bool = False
    response_format: _ResponseFormat | None = None

    @property
    def asked_tokens(self) -> tuple[int | None, str]:
        """The most tokens of an answer, and what the client calls them."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens, "max_completion_tokens"
        return super().asked_tokens

    def asked(self, most_tokens: int) -> Asked:
        """What the model's thread is asked."""
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequestError("top_logprobs tells more of logprobs: set that to true", param="top_logprobs")
        likeliest = (self.top_logprobs or 0) if self.logprobs else None
        tools = tuple(self.tools or ()) if self.tool_choice != "none" else ()
        options = self.options(most_tokens)
        return Asked(self._conversation(), options, tools=tools, answers=self.n, likeliest=likeliest)

    def _conversation(self) -> Sequence[Message]:
        turns = [_system_of_developer(turn) for turn in self.messages]
        try:
            return to_question(Row({"messages": turns}, "the request")).messages
        except DataError as error:
            problem = error.problems[0]
            raise BadRequestError(f"{problem.key} {problem.message}", param=problem.key) from error


def _system_of_developer(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenAI's newer models call the system's turn the developer's."""
    return {**turn, "role": "system"} if turn.get("role") == "developer" else turn


def read_body(kind: type[Kind], text: bytes) -> Kind:
    """The request that the bytes of a body are.

    Raises:
        BadRequestError: They are no JSON, or a key of it is unknown, missing or of the wrong kind.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        param = ".".join(map(str, detail["loc"])) or None
        said = f"{param}: {detail['msg']}" if param else detail["msg"]
        if detail["type"] == "extra_forbidden":
            said = f"{param} is not known here, or not done"
        elif detail["type"] == "literal_error":
            said = f"{param} is not done here but for {detail['ctx']['expected']}: leave it out"
        raise BadRequestError(said, param=param) from None
