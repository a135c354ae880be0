"""What every test stands on: no network, one thread, `--slow`, and the few shared fixtures."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator

# What is started in the background of a script ignores Ctrl-C, and what nohup starts the end of its terminal: so would
# every command that a test starts and stops.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Libraries read these when they are imported, so they are set before anything else is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.pop("HF_TOKEN", None)

from pathlib import Path

import pytest

from tests.words import WORDS, Wording, Words

QUICK = 1.5
"""Seconds of the processor that a test may take which is not slow; the first to import something is forgiven."""
TAKEN = "seconds of the processor"
ON_CPU = "LORAFT_GPU_TESTS_ON_CPU"
"""Where it is set, tests of a GPU that say something of a CPU too run where there is no GPU: `tests/gpu` tells why."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` runs what needs a real model or more than a few seconds."""
    parser.addoption("--slow", action="store_true", help="run the slow tests too (real models, long runs)")
    parser.addoption("--renew-words", action="store_true", help="take what tests are told as what they should be told")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say that tests are left out."""
    return None if config.getoption("--slow") else "slow tests are left out: --slow runs them"


def pytest_configure(config: pytest.Config) -> None:
    """Read the words of messages."""
    gc.disable()  # while tests are imported, of which nothing goes again
    renewing = config.getoption("--renew-words")
    if renewing and config.getoption("numprocesses", None):
        raise pytest.UsageError("--renew-words writes one file: leave -n out")
    config.stash[WORDS] = Words(renewing=renewing)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the words of messages, where that was asked for."""
    if session.config.getoption("--renew-words"):
        session.config.stash[WORDS].save()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests that were not asked for, and skip those of a GPU where there is none."""
    config.stash[WORDS].collected = {item.nodeid for item in items}
    slow = config.getoption("--slow")
    seen: Counter[str] = Counter()
    for item in items:
        if (mark := item.get_closest_marker("slow_after")) is not None:
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > mark.args[0]:
                item.add_marker(pytest.mark.slow)
        gpu = item.get_closest_marker("gpu")  # keywords hold the names of folders too
        if gpu is not None and not has_cuda() and not (gpu.kwargs.get("or_cpu") and ON_CPU in os.environ):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and torch sees none"))
    if not slow:
        left_out = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)  # each that is skipped would be set up, and told of
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_collection_finish() -> None:
    """What was imported stays: the collector of garbage need not look through it again and again."""
    if "transformers" in sys.modules:
        sys.modules["transformers"].logging.set_verbosity_error()
    _pass_over_what_stays()
    gc.set_threshold(50_000)  # a model is many small objects, and the 700 of Python's default are soon there
    gc.enable()


PASSED_OVER: list[int] = []
"""How many modules there were each time that all that was there was taken from the collector of garbage."""
MANY_MODULES = 100
# A fork has not the threads of its parent: to end a server that was left behind, it would wait for them for ever.
os.register_at_fork(after_in_child=gc.freeze)


def _pass_over_what_stays() -> None:
    """Have the collector of garbage look no more at what there is: in a fork it would copy all of it to do so."""
    gc.collect()
    gc.freeze()
    PASSED_OVER.append(len(sys.modules))


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish() -> None:
    """Tests import what they try: hundreds of models, in the zoo."""
    if PASSED_OVER and len(sys.modules) > PASSED_OVER[-1] + MANY_MODULES:
        _pass_over_what_stays()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Measure what is not slow: the time of the processor, which others that use the machine do not lengthen much."""
    began, loaded = time.process_time(), len(sys.modules)
    yield
    taken = time.process_time() - began
    if taken > QUICK and not item.get_closest_marker("slow") and len(sys.modules) < loaded + 20:
        item.user_properties.append((TAKEN, taken))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that are not as quick as they should be."""
    for report in terminalreporter.stats.get("passed", ()):
        if (taken := dict(report.user_properties).get(TAKEN)) is not None:
            terminalreporter.line(f"{report.nodeid} took {taken:.1f} s of the processor: is it slow?", yellow=True)


def has_cuda() -> bool:
    """Whether torch sees a GPU; torch is imported for this only where a GPU test was collected."""
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of loraft's own for all tests, with the real models of this machine's: rows of tests are no user's."""
    from loraft.io.paths import CONVERSION, cache_folder

    before, models = os.environ.get("LORAFT_CACHE"), cache_folder() / CONVERSION
    models.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / models.name).symlink_to(models.resolve())
    os.environ["LORAFT_CACHE"] = str(folder)
    yield
    if before is None:
        del os.environ["LORAFT_CACHE"]
    else:
        os.environ["LORAFT_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def _files_need_not_outlive_the_power() -> Iterator[None]:
    """A flush to the disk only looks at what is open here: a run has dozens, each of which waits for the disk."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session", autouse=True)
def _nobody_waits_for_a_server() -> Iterator[None]:
    """What fails for the moment is asked for again at once."""
    from loraft.io import patience

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patience, "SECONDS", (0.0, 0.0, 0.0))
        yield


@pytest.fixture
def wording(request: pytest.FixtureRequest, tmp_path: Path) -> Wording:
    """Compares what was said with what `words.json` has of this test."""
    return lambda said: request.config.stash[WORDS].compare(request.node.nodeid, said, [tmp_path])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of loraft's own, for this test and the processes that it starts."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LORAFT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, converted once into the cache of this machine."""
    from loraft.models.sources import resolve

    return resolve("builtin:smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, fetched once into the cache of this machine."""
    from loraft.models.sources import resolve

    return resolve("builtin:all-minilm-l6-v2")
