"""What lies elsewhere or has to be made first is fetched and made by one rank of a machine, and the others find it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loraft import api
from loraft.dataset import build, token_cache
from loraft.distributed.ranks import Ranks
from loraft.models import sources
from loraft.training import trainer
from tests.distributed.forked import forked
from tests.models.gguf_files import write_tiny_gguf
from tests.rows.test_remote import Quiet
from tests.training.building import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]
PLANS, WRITES, CONVERTS = (build, "_made"), (token_cache, "save_file"), (sources, "convert")
"""Where rows become tokens, tokens are kept, and a model is converted."""


def counting(owner: Any, name: str) -> list[str]:
    """Note the calls of a function of a module in this process, a fork."""
    calls, real = [], getattr(owner, name)

    def noted(*args: object, **named: object) -> object:
        calls.append(name)
        return real(*args, **named)

    setattr(owner, name, noted)
    return calls


def trained(config: Any, *counted: tuple[Any, str]) -> Callable[[Ranks], list[int]]:
    """Train as a rank does, and count."""

    def act(_: Ranks) -> list[int]:
        calls = [counting(*each) for each in counted]
        api.train(config)
        return [len(each) for each in calls]

    return act


def test_rows_are_tokenized_and_a_model_is_converted_by_the_first(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf")
    tiny_config(tmp_path)
    model = {"model__name_or_path": str(tmp_path / "m.gguf"), "model__tokenizer": str(tmp_path / "model")}
    config = tiny_config(tmp_path, **model, training__max_steps=1)
    assert forked(2, trained(config, PLANS, WRITES, CONVERTS)) == [[1, 1, 1], [0, 0, 0]]


def test_rows_that_cannot_be_kept_become_tokens_on_each(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the cache would be")
    config = tiny_config(tmp_path, training__max_steps=1)
    assert forked(2, trained(config, PLANS, WRITES)) == [[1, 0], [1, 0]]


@pytest.mark.parametrize("machines", [1, 2])
def test_the_hub_is_asked_by_the_first_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machines: int
) -> None:
    """Weights too, which are fetched after everything else is known."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    tiny_config(tmp_path)
    config = tiny_config(tmp_path, model__name_or_path="org/name", training__max_steps=1)
    asked = tmp_path / "asked"
    asked.touch()

    def act(ranks: Ranks) -> None:
        def snapshot(_: str, *, local_files_only: bool = False, allow_patterns: list[str], **__: object) -> str:
            with asked.open("a") as file:
                what = "weights" if "*.safetensors" in allow_patterns else "small files"
                file.write(f"{what} {ranks.rank} {'kept' if local_files_only else 'asked'}\n")
            return str(tmp_path / "model")

        sources.snapshot_download = snapshot
        api.train(config)

    assert forked(2, act, machines=machines) == [None, None]
    told = asked.read_text().splitlines()
    for what in ("small files", "weights"):
        first, *others = [line for line in told if line.startswith(what)]
        if machines == 1:
            assert (first, set(others)) == (f"{what} 0 asked", {f"{what} 1 kept"})
        else:
            assert {first, *others} == {f"{what} 0 asked", f"{what} 1 asked"}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A server that says nothing by which a file is known again, and what it is asked for."""
    asked: list[str] = []

    class Mute(Quiet):
        def send_header(self, keyword: str, value: str) -> None:
            if keyword != "Last-Modified":
                super().send_header(keyword, value)

    handler = type("Handler", (Mute,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
        thread.join()


def test_rows_at_an_address_are_fetched_by_the_first(tmp_path: Path, address: tuple[str, list[str]]) -> None:
    there, asked = address
    tiny_config(tmp_path)
    config = tiny_config(tmp_path, data__train=f"{there}/train.jsonl", training__max_steps=1)
    assert forked(2, trained(config, PLANS)) == [[1], [0]]
    assert len([line for line in asked if line.startswith("GET")]) == 1


def test_which_weights_are_the_best_is_found_by_rank_0(tmp_path: Path) -> None:
    """Another rank may find a checkpoint damaged that it sees too late, and all have to go the same way."""
    options = {"training__early_stopping_patience": 1, "training__eval_steps": 1, "training__save_steps": 1}
    config = tiny_config(tmp_path, data__eval=0.3, training__learning_rate=50.0, **options)

    def act(ranks: Ranks) -> tuple[int, int | None, int]:
        if ranks.rank == 1:
            trainer.checkpoint_fault = lambda _: "is not seen yet"
        result = api.train(config)
        return result.steps, result.best_step, result.saved_step

    (steps, best, saved), other = forked(2, act)
    assert (steps, best, saved) == other
    assert saved == best < steps
