"""Clients of `loraft serve` at once against one alone: tokens a second of the same kind of answers.

    .venv/bin/python scripts/benchmark_serve.py

SmolLM2-135M-Instruct behind a server in this process, asked over HTTP. One client asks its questions one after the
other; then so many clients ask at once, one question each, and new ones join while others are answered: they ask for
answers of different lengths. The rate counts the tokens of all answers over the whole time, reading prompts included.
No question is asked twice, so nothing that was read before helps. Median of the rounds, after one that warms up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import uvicorn
from benchmark_record import Figure, add_option, record

from loraft.inference.requests import ModelRequest
from loraft.inference.session import open_session
from loraft.serving.interface import Limits, Server

MODEL = "builtin:smollm2-135m-instruct"
NUMBERS = itertools.count()


def main() -> None:
    """Measures both and prints a table."""
    options = parse_options()
    with served(options) as port:
        rates: dict[int, list[float]] = {1: [], options.clients: []}
        for number in range(options.rounds + 1):
            for clients, of_clients in rates.items():
                rate = tokens_a_second(port, clients, options.new_tokens)
                if number:
                    of_clients.append(rate)
    ratio = statistics.median(many / one for one, many in zip(*rates.values(), strict=True))
    one, many = map(statistics.median, rates.values())
    print(f"1 client    {one:7.1f} tokens/s\n{options.clients} clients  {many:7.1f} tokens/s\nratio       {ratio:7.2f}")
    record(options.json, figures(one, many, ratio, options), packages=["starlette", "uvicorn"])


def figures(one: float, many: float, ratio: float, options: argparse.Namespace) -> Sequence[Figure]:
    """What is kept of it."""
    measured = f"answers to {options.clients} clients at once in {options.dtype}"
    return [Figure(measured, "tokens/s", many, "one client", one, ratio)]


@contextmanager
def served(options: argparse.Namespace) -> Iterator[int]:
    """The server, and its port."""
    session = open_session(ModelRequest(MODEL, dtype=options.dtype))
    app = Server(session, Limits(rows=options.clients)).app()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def tokens_a_second(port: int, clients: int, new_tokens: int) -> float:
    """What all clients get together; a client alone asks three questions."""
    asked = [new_tokens * (1 + number % 3) // 2 for number in range(max(clients, 3))]
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        told = sum(pool.map(lambda tokens: ask(port, tokens), asked))
    return told / (time.perf_counter() - began)


def ask(port: int, tokens: int) -> int:
    """The tokens of an answer to a question that nobody has asked."""
    question = f"{next(NUMBERS)} is my number: tell a long story about it."
    said = {"messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0}
    sent = json.dumps({"model": "base", **said}).encode()
    place = f"http://127.0.0.1:{port}/v1/chat/completions"
    asked = urllib.request.Request(place, sent, {"content-type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


def parse_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description="clients of loraft serve at once against one alone")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    add_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
