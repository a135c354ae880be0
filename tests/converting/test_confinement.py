"""Each door that a process may not use is shut, and what it needs to do its work is not."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from loraft.converting.confinement import confine, leave_network


def confined(act: Callable[[], object], out: Path, size: int = 1000) -> str:
    """What a fork that is confined says of `act`: the class of what it raises, or `done`."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        said = "done"
        try:
            leave_network()
            confine(out, size)
            act()
        except BaseException as error:
            said = type(error).__name__
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        return told.read()


DOORS: dict[str, Callable[[Path], object]] = {
    "a socket": lambda _: socket.socket(),
    "an address": lambda _: socket.create_connection(("127.0.0.1", 9)),
    "a shell": lambda at: os.system(f"touch {at}/ran"),
    "a program": lambda at: subprocess.run(["touch", f"{at}/ran"], check=False),
    "another program instead": lambda at: os.execv("/bin/touch", ["touch", f"{at}/ran"]),
    "a fork": lambda _: os.fork() or os._exit(0),
    "writing": lambda at: (at / "ran").write_text("x"),
    "appending": lambda at: (at / "kept").open("a"),
    "writing by number": lambda at: os.open(at / "ran", os.O_CREAT | os.O_WRONLY),
    "removing": lambda at: (at / "kept").unlink(),
    "renaming": lambda at: (at / "kept").rename(at / "ran"),
    "a folder": lambda at: (at / "ran").mkdir(),
    "a link": lambda at: (at / "ran").symlink_to("kept"),
    "its mode": lambda at: (at / "kept").chmod(0o777),
    "a library": lambda _: __import__("ctypes").CDLL("libm.so.6"),
    "a signal": lambda _: os.kill(os.getppid(), signal.SIGTERM),
}


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_shut(door: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    assert confined(lambda: DOORS[door](tmp_path), tmp_path / "out") == "PermissionError"
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "kept"


def test_reading_and_writing_its_file_is_open(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    assert confined(lambda: (tmp_path / "out").write_text((tmp_path / "kept").read_text()), tmp_path / "out") == "done"
    assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells what a process holds")
def test_memory_is_bounded_by_the_size_of_the_file(tmp_path: Path) -> None:
    assert confined(lambda: bytearray(3 << 30), tmp_path / "out") == "MemoryError"
    assert confined(lambda: bytearray(1 << 20), tmp_path / "out") == "done"


def test_time_is_bounded(tmp_path: Path) -> None:
    def bounds() -> None:
        assert resource.getrlimit(resource.RLIMIT_CPU)[1] == 60 + 50
        assert resource.getrlimit(resource.RLIMIT_CORE)[1] == 0

    assert confined(bounds, tmp_path / "out", size=1_000_000_000) == "done"
