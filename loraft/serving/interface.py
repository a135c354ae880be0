"""The HTTP interface: `/v1/models`, `/v1/chat/completions` and `/v1/completions`, and `/health`."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from weakref import WeakSet

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from loraft.errors import ModelError, RunError
from loraft.events import Observer, ignored
from loraft.inference.session import Session, Speaker
from loraft.serving.bodies import BadRequestError, Body, ChatBody, CompletionBody, read_body
from loraft.serving.jobs import Event, Failed, Grown, Job, Opened
from loraft.serving.model_thread import ModelThread, QueueFullError
from loraft.serving.replies import Reply, error_reply, refused


@dataclass(frozen=True)
class Limits:
    """What a server allows.

    Attributes:
        rows: How many answers grow together at most.
        queue: How many requests may wait for that.
        tokens: The most tokens that an answer may be asked to have.
        body_bytes: The largest body of a request.
    """

    rows: int = 16
    queue: int = 256
    tokens: int = 4096
    body_bytes: int = 1 << 20


class Server:
    """A session behind the interface.

    `api_key`, where there is one, has to be brought by each request; and it has to call this server by one of the names
    `hosts`, where there are some, so that a page in a browser cannot reach it by a name of its own.
    """

    def __init__(
        self,
        session: Session,
        limits: Limits,
        api_key: str | None = None,
        hosts: Collection[str] = (),
        observer: Observer = ignored,
    ) -> None:
        self._limits, self._api_key, self._hosts = limits, api_key, hosts
        self._thread = ModelThread(session, rows=limits.rows, queue=limits.queue, observer=observer)
        self._voices = session.voices
        self._asking: WeakSet[asyncio.Queue[Event]] = WeakSet()
        self._talking, self._why_not = _conversing(session.voices)
        self._started = int(time.time())

    def app(self) -> ASGIApp:
        """The application, whose model thread runs as long as it does; what is cancelled at its end is no error."""
        routes = [
            Route("/health", self._health, methods=["GET"]),
            Route("/v1/models", self._guarded(self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._guarded(self._model), methods=["GET"]),
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(self._complete), methods=["POST"]),
        ]
        answering = Starlette(routes=routes, lifespan=self._running, exception_handlers={HTTPException: _of_http})

        async def cancellable(scope: Scope, receive: Receive, send: Send) -> None:
            with suppress(asyncio.CancelledError):
                await answering(scope, receive, send)

        return cancellable

    @asynccontextmanager
    async def _running(self, _: Starlette) -> AsyncIterator[None]:
        self._thread.start()
        yield
        await asyncio.to_thread(self._thread.stop)

    def end(self) -> None:
        """Let what is still being answered end by an error; to be called in the loop of the application."""
        for events in self._asking:
            events.put_nowait(Failed(RunError("the server is ending")))

    def _guarded(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The same for those who bring the key, with what is refused as the interface says it."""

        async def guarded(request: Request) -> Response:
            try:
                self._let_in(request)
                return await answer(request)
            except BadRequestError as error:
                more = {"Retry-After": "1"} if error.status == 429 else {}
                return JSONResponse(error_reply(error), error.status, headers=more)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it

        return guarded

    def _let_in(self, request: Request) -> None:
        if self._hosts and request.url.hostname not in self._hosts:
            there = " or ".join(self._hosts)
            message = f"{request.url.hostname} is no name of this server: call it {there}"
            raise BadRequestError(message, status=421)
        brought = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._api_key and not hmac.compare_digest(brought.encode(), self._api_key.encode()):
            raise BadRequestError("the API key is missing or wrong", status=401, code="invalid_api_key")

    async def _health(self, _: Request) -> Response:
        thread = self._thread
        return JSONResponse({"status": "ok", "answering": thread.answering, "waiting": thread.waiting})

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described(name) for name in self._voices]})

    async def _model(self, request: Request) -> Response:
        return JSONResponse(self._described(self._voice(request.path_params["name"]).name))

    def _described(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "loraft"}

    def _voice(self, name: str) -> Speaker:
        if name not in self._voices:
            there = ", ".join(self._voices)
            message = f"there is no model {name!r} here; there is {there}"
            raise BadRequestError(message, param="model", status=404, code="model_not_found")
        return self._voices[name]

    async def _chat(self, request: Request) -> Response:
        body = read_body(ChatBody, await self._body_of(request))
        voice = self._talking.get(self._voice(body.model).name)
        if voice is None:
            raise BadRequestError(self._why_not[body.model], param="model")
        return await self._answer(request, body, voice)

    async def _complete(self, request: Request) -> Response:
        body = read_body(CompletionBody, await self._body_of(request))
        return await self._answer(request, body, self._voice(body.model))

    async def _body_of(self, request: Request) -> bytes:
        """The body, as far as it is not too large; one that a page of another site could send is not taken."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise BadRequestError("the body must be JSON, with content-type: application/json", status=415)
        read, most = bytearray(), self._limits.body_bytes
        async for piece in request.stream():
            read += piece
            if len(read) > most:
                raise BadRequestError(f"the body is larger than {most:,} bytes", status=413)
        return bytes(read)

    async def _answer(self, request: Request, body: Body, voice: Speaker) -> Response:
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._asking.add(events)
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(voice, body.asked(self._limits.tokens), tell)
        try:
            self._thread.submit(job)
        except QueueFullError:
            message = f"{self._limits.queue} requests wait already; try again later"
            raise BadRequestError(message, status=429, code="queue_full") from None
        gone = asyncio.create_task(_gone(request, job, events))
        try:
            first = await events.get()
            if isinstance(first, Failed):
                raise refused(first)
            assert isinstance(first, Opened)
            reply = Reply(body, first)
            if not body.stream:
                while not reply.is_whole:
                    reply.take(_grown(await events.get()))
                return JSONResponse(reply.whole())
        finally:
            if not body.stream:
                job.cancelled = True
            gone.cancel()
        return StreamingResponse(_streamed(job, reply, events), media_type="text/event-stream")


async def _gone(request: Request, job: Job, events: asyncio.Queue[Event]) -> None:
    """Wait for the client to go away, and let nobody wait for its answer then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancelled = True
    events.put_nowait(Failed(RunError("the client went away")))


def _grown(event: Event) -> Grown:
    if isinstance(event, Failed):
        raise refused(event)
    assert isinstance(event, Grown)
    return event


async def _streamed(job: Job, reply: Reply, events: asyncio.Queue[Event]) -> AsyncIterator[str]:
    """The pieces of an answer as server-sent events; an error on the way is the last of them."""
    try:
        for piece in reply.opening():
            yield _event(piece)
        while not reply.is_whole:
            grown = _grown(await events.get())
            reply.take(grown)
            yield _event(reply.piece(grown))
        if reply.body.includes_usage:
            yield _event(reply.last_piece())
    except BadRequestError as error:
        yield _event(error_reply(error))
    finally:
        job.cancelled = True
    yield "data: [DONE]\n\n"


def _event(piece: Mapping[str, object]) -> str:
    return f"data: {json.dumps(piece, ensure_ascii=False)}\n\n"


async def _of_http(_: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException)
    told = BadRequestError(f"{error.detail}; there is /v1/models, /v1/chat/completions and /v1/completions")
    return JSONResponse(error_reply(told), error.status_code, headers=error.headers)


def _conversing(voices: Mapping[str, Speaker]) -> tuple[dict[str, Speaker], dict[str, str]]:
    """The voices that hold conversations, and of the others why they do not."""
    talking, why_not = dict[str, Speaker](), dict[str, str]()
    for name, voice in voices.items():
        try:
            talking[name] = voice.conversing()
        except ModelError as error:
            why_not[name] = error.problems[0].message
    return talking, why_not
