"""`import loraft` is light, and so is all that reads a config."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loraft
import loraft.cli
import loraft.config
from loraft.config.config_file import load_config
from loraft.config.schema import RunConfig

ROOT = Path(__file__).parent.parent
HEAVY = ["torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "numpy"]
LIGHT = [
    "loraft",
    "loraft.errors",
    "loraft.models.registry",
    "loraft.training.run_events",
    *(f"loraft.config.{module.name}" for module in pkgutil.iter_modules(loraft.config.__path__)),
    *(module.name for module in pkgutil.walk_packages(loraft.cli.__path__, "loraft.cli.")),
]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_light_modules_load_where_the_heavy_libraries_are_absent() -> None:
    code = f"""
import importlib, json, sys
sys.modules.update(dict.fromkeys({HEAVY}))  # None: an import of it fails as if it were not installed
failed = []
for name in {LIGHT}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{{name}}: {{error}}")
print(json.dumps(failed))
"""
    assert json.loads(run(code)) == []


def test_public_names_are_found_on_first_use() -> None:
    assert loraft.load_config is load_config
    assert loraft.RunConfig is RunConfig
    assert set(loraft.__all__) <= set(dir(loraft))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = loraft.nothing


def test_naming_loraft_loads_its_version_alone() -> None:
    code = "import sys, loraft; dir(loraft); print(sorted(name for name in sys.modules if name.startswith('loraft')))"
    assert run(code) == "['loraft', 'loraft.version']\n"


@pytest.mark.slow
def test_the_verbs_are_the_apis() -> None:
    from loraft import api

    verbs = (api.check, api.train, api.merge, api.generate)
    assert (loraft.check, loraft.train, loraft.merge, loraft.generate) == verbs


def test_the_version_is_one_that_pip_reads() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", loraft.__version__)
