"""The scripts: they parse, they can be run, and a second installation does nothing."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = [*sorted(path for path in (ROOT / "scripts").iterdir() if not path.suffix), ROOT / ".ci/run"]


def run(*command: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.is_file()], ids=lambda path: path.name)
def test_parses_and_can_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script).returncode == 0


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_what_a_script_takes_from_loraft_is_there(script: Path) -> None:
    taken = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("loraft")
        for alias in node.names
    ]
    assert taken
    assert [name for name in taken if not hasattr(import_module(name[0]), name[1])] == []


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone with the files that an installation reads, and a pip that writes down what it was asked."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/install", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\ncase "$*" in *install*) echo "$@" >> "{tmp_path}/asked";; esac\n')
    python.chmod(0o755)
    return tmp_path


def test_a_second_installation_does_nothing(checkout: Path) -> None:
    for _ in range(2):
        assert run(checkout / "scripts/install", "dev").returncode == 0
    assert run(checkout / "scripts/install").returncode == 0
    asked = (checkout / "asked").read_text().splitlines()
    assert len(asked) == 1
    assert asked[0].endswith("-c constraints.txt -e .[dev]")


def test_a_changed_requirement_installs_anew(checkout: Path) -> None:
    run(checkout / "scripts/install")
    with (checkout / "constraints.txt").open("a") as constraints:
        constraints.write("another==1.0\n")
    run(checkout / "scripts/install")
    assert len((checkout / "asked").read_text().splitlines()) == 2


def test_an_old_python_is_named(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    old = checkout / "bin"
    old.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum", "env"):
        (old / tool).symlink_to(shutil.which(tool) or "")
    (old / "python3").write_text('#!/bin/bash\n[ "$1" = --version ] && echo "Python 3.9.2" && exit\nexit 1\n')
    (old / "python3").chmod(0o755)
    done = run(checkout / "scripts/install", path=str(old))
    assert done.returncode == 2
    assert done.stderr == "loraft needs Python 3.11 or newer; found: Python 3.9.2.\n"


def test_every_requirement_is_held_by_one_version() -> None:
    """Each direct dependency stands in constraints.txt with ==, from PyPI (no paths, no local versions)."""
    import tomllib

    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    wanted = {re.split(r"[<>=\[; ]", requirement)[0].lower().replace("_", "-") for requirement in named}
    assert wanted - {"loraft"} <= {name.lower().replace("_", "-") for name in pins}
