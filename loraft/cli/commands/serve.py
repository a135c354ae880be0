"""`loraft serve`: a model, and what was trained of it, behind OpenAI's HTTP interface."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

from loraft.cli.console import print_message, print_note, waiting
from loraft.cli.options import AnswerOptions, option
from loraft.cli.views.progress import watching
from loraft.errors import InvalidInputError, lacking

API_KEY = "LORAFT_API_KEY"
"""The variable of the environment that holds what each request has to bring."""


@dataclass(frozen=True)
class ServerOptions:
    """Where it answers, and what it allows."""

    host: str = option("ADDRESS", "The address to listen at; 0.0.0.0 answers other machines too.", default="127.0.0.1")
    port: int = option("N", "The port; 0 takes any that is free.", default=8000, min=0, max=65535)
    batch_size: int = option("N", "How many answers grow together at most.", default=16, min=1)
    max_queue: int = option("N", "How many requests may wait; more get status 429.", default=256, min=1)
    max_tokens: int = option("N", "The most tokens that an answer may be asked to have.", default=4096, min=1)
    max_body: int = option("BYTES", "The largest body of a request.", default=1 << 20, min=1024)


def serve(
    asked: Annotated[
        AnswerOptions, "target adapters base_model quantize dtype merge source_lang target_lang trust_remote_code"
    ],
    given: ServerOptions,
) -> None:
    """Answer OpenAI's HTTP interface: chat and completions, whole or as a stream.

    A request names its model: an adapter by its name, or base. Template, system prompt, stop tokens and sampling are
    those that were saved with it, unless a request says otherwise. What a model says is given as one text: calls of
    tools in it are not told apart as tool_calls, nor thoughts as reasoning_content. Where LORAFT_API_KEY is set in the
    environment, each request has to bring it. Ctrl-C or SIGTERM lets what is being answered end, and then ends.
    """
    model, key = asked.model, os.environ.get(API_KEY) or None
    absent = [problem for name in ("starlette", "uvicorn") if (problem := lacking(name, "`loraft serve`"))]
    if absent:
        raise InvalidInputError.several(absent[:1])
    with waiting("loading libraries"):
        from loraft.serving.interface import Limits
        from loraft.serving.run_server import is_loopback
        from loraft.serving.run_server import serve as serve_model

    if not is_loopback(given.host) and key is None:
        print_note(f"whoever reaches {given.host} may ask: set {API_KEY} in the environment to let in who brings it")
    limits = Limits(given.batch_size, given.max_queue, given.max_tokens, given.max_body)
    with watching("load") as view:
        try:
            serve_model(
                model, host=given.host, port=given.port, limits=limits, api_key=key, observer=view, on_ready=_ready
            )
        except KeyboardInterrupt:
            print_message("ended.")


def _ready(address: str, names: tuple[str, ...]) -> None:
    print_message(f"{', '.join(names)} at {address} · Ctrl-C ends")
