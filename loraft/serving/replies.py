"""What a client gets, as OpenAI's interface has it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any
from uuid import uuid4

from loraft.serving.bodies import BadRequestError, Body, ChatBody
from loraft.serving.jobs import ChoiceToken, Failed, Grown, Opened, ScoredToken


def error_reply(error: BadRequestError) -> dict[str, Any]:
    """What is said where there is no answer."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def refused(failed: Failed) -> BadRequestError:
    """A failure as the client is told it: what it asked for is wrong, or the server could not."""
    problem = failed.error.problems[0]
    named = f"{problem.key or problem.where}: " if problem.key or problem.where else ""
    remedy = f". {problem.remedy}" if problem.remedy else ""
    status = 400 if failed.error.exit_code == 2 else 500
    return BadRequestError(f"{named}{problem.message}{remedy}", param=problem.key, status=status)


@dataclass(eq=False)
class Reply:
    """The answers to one request, of which some have come."""

    body: Body
    opened: Opened
    id: str = field(default_factory=lambda: f"loraft-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: dict[int, list[ChoiceToken]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether each answer has ended."""
        return len(self.reasons) == self.body.n

    def take(self, grown: Grown) -> None:
        """Take what has come."""
        self.tokens.setdefault(grown.choice, []).extend(grown.tokens)
        if grown.finish_reason is not None:
            self.reasons[grown.choice] = grown.finish_reason

    def whole(self) -> dict[str, Any]:
        """All of it, in one piece."""
        chat = isinstance(self.body, ChatBody)
        choices = []
        for choice in range(self.body.n):
            tokens = self.tokens.get(choice, [])
            text = "".join(token.text for token in tokens)
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text}
            ending = {"finish_reason": self.reasons[choice], "logprobs": self._logprobs(tokens)}
            choices.append({"index": choice, **said, **ending})
        return self._object(choices, is_piece=False) | {"usage": self.usage()}

    def opening(self) -> Iterable[dict[str, Any]]:
        """The pieces that a stream begins with: in a chat, who speaks."""
        if isinstance(self.body, ChatBody):
            for choice in range(self.body.n):
                yield self._piece(Grown(choice, (), None), {"delta": {"role": "assistant", "content": ""}})

    def piece(self, grown: Grown) -> dict[str, Any]:
        """What has come and was taken, as a piece of a stream."""
        text = "".join(token.text for token in grown.tokens)
        return self._piece(grown, {"delta": {"content": text}} if isinstance(self.body, ChatBody) else {"text": text})

    def last_piece(self) -> dict[str, Any]:
        """The numbers of tokens, which end a stream where they are asked for."""
        return self._object([], is_piece=True) | {"usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """The numbers of tokens: of the prompt, which is read once, and of all answers to it."""
        read, said = self.opened.prompt_tokens, sum(map(len, self.tokens.values()))
        details = {"cached_tokens": self.opened.held}
        numbers = {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}
        return numbers | {"prompt_tokens_details": details}

    def _piece(self, grown: Grown, said: dict[str, Any]) -> dict[str, Any]:
        before = self.tokens.get(grown.choice, [])[: -len(grown.tokens)] if grown.tokens else []
        logprobs = self._logprobs(grown.tokens, before) if grown.tokens else None
        ending = {"finish_reason": grown.finish_reason, "logprobs": logprobs}
        piece = self._object([{"index": grown.choice, **said, **ending}], is_piece=True)
        return piece | {"usage": self.usage()} if self.body.counts_all_along else piece

    def _object(self, choices: list[dict[str, Any]], *, is_piece: bool) -> dict[str, Any]:
        of_chat = "chat.completion.chunk" if is_piece else "chat.completion"
        kind = of_chat if isinstance(self.body, ChatBody) else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model, "choices": choices}

    def _logprobs(self, tokens: Sequence[ChoiceToken], before: Sequence[ChoiceToken] = ()) -> dict[str, Any] | None:
        """The log-probabilities where they were asked for, of tokens that follow those `before` in their answer."""
        asked = getattr(self.body, "logprobs", None)
        if asked is None or asked is False:
            return None
        if isinstance(self.body, ChatBody):
            return {"content": [_of_token(token) for token in tokens], "refusal": None}
        start = sum(len(token.text) for token in before)
        offsets = list(accumulate((len(token.text) for token in tokens), initial=start))
        return {
            "tokens": [token.said.spelled for token in tokens],
            "token_logprobs": [token.said.logprob for token in tokens],
            "top_logprobs": [{each.spelled: each.logprob for each in token.likeliest} for token in tokens],
            "text_offset": offsets[:-1],
        }


def _of_token(token: ChoiceToken) -> dict[str, Any]:
    return {**_scored(token.said), "top_logprobs": list(map(_scored, token.likeliest))}


def _scored(token: ScoredToken) -> dict[str, Any]:
    known = None if token.utf8 is None else list(token.utf8)
    return {"token": token.spelled, "logprob": token.logprob, "bytes": known}
