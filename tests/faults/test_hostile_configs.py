"""Configs that are wrong in every way that chance finds, and keys that are misspelt in one letter."""

from __future__ import annotations

import random
import re
import string
import time
from contextlib import suppress
from pathlib import Path

import pytest

from loraft.config.config_file import load_config
from loraft.config.schema_info import KEYS
from loraft.config.validation_errors import advice_for_key
from loraft.errors import ConfigError
from tests.cli.running import loraft
from tests.config.written_files import LEAST
from tests.faults.conftest import Trial

ROOT = Path(__file__).parents[2]
MUTATED = "a mutated config: loaded, or refused with its place within a second"
MISSPELT = "a key misspelt by one edit: answered with the right one"
PIECES = (
    *("\0", "\t", "\x85", "\u2028", "\ufeff", "\ud800", "\r", *":[]{}'\"|>\\#@`é", "&a ", "*a", "0x", "1e999", "null"),
    *("~", ".nan", "-.inf", "<<: ", "= ", "!!python/object:x ", "!<x> ", "2001-01-01", " ", "\n", ": ", "- ", "? "),
    *("%YAML 1.1\n", "%TAG ! x\n", "---\n", "...", "lora:\n", "  r: 1\n"),
)


def mutated(text: str, chance: random.Random) -> bytes:
    """`text` with one to six cuts, doublings, foreign pieces and broken bytes."""
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(text) + 1)
        stop = min(len(text), start + chance.randint(0, 12))
        match chance.randrange(4):
            case 0:
                text = text[:start] + text[stop:]
            case 1:
                text = text[:stop] + text[start:]
            case _:
                text = text[:start] + chance.choice(PIECES) + text[start:]
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    if raw and chance.random() < 0.2:
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(raw)


@pytest.mark.slow
def test_c45_a_thousand_mutated_configs_end_in_a_config_or_a_config_error(
    trial: Trial, torture: bool, tmp_path: Path
) -> None:
    texts = [path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml"))] + [LEAST]
    path, accepted = tmp_path / "run.yaml", 0
    for seed in range(10_000 if torture else 1_000):
        chance = random.Random(seed)
        path.write_bytes(mutated(chance.choice(texts), chance))
        overrides = ["seed=1"] if seed % 3 else [mutated("lora.r=[q_proj]", chance).decode("utf-8", "replace")]
        with trial(MUTATED):
            began = time.process_time()
            with suppress(ConfigError):
                load_config(path, overrides)
                accepted += 1
            assert time.process_time() - began < 1, seed
    assert 0 < accepted < (7_000 if torture else 700)


@pytest.mark.slow
def test_c45_so_through_the_command_line(trial: Trial, tmp_path: Path) -> None:
    for seed in range(20):
        chance = random.Random(seed)
        (tmp_path / "run.yaml").write_bytes(mutated(LEAST, chance))
        with trial(MUTATED):
            done = loraft("preview", "run.yaml", cwd=tmp_path)
            assert done.returncode == 2, done.stderr  # where the config is whole, there are no rows
            assert "Traceback" not in done.stderr
            assert done.stderr.startswith("error: "), done.stderr


def edits(word: str, chance: random.Random) -> str:
    """The word with one letter dropped, doubled, changed, put in, or exchanged with the next."""
    place = chance.randrange(len(word))
    before, letter, after = word[:place], word[place], word[place + 1 :]
    other = chance.choice(string.ascii_lowercase + "_-")
    return chance.choice(
        [before + after, before + letter + word[place:], before + other + after, before + other + word[place:],
         before + after[:1] + letter + after[1:]]
    )  # fmt: skip


@pytest.mark.slow
def test_a_key_that_is_misspelt_is_answered_with_the_right_one(trial: Trial, torture: bool) -> None:
    """Of all keys of the schema by chance; what another tool calls so, or is another key, is no misspelling of it."""
    chance, right, asked = random.Random(5), 0, 0
    words = {key.rpartition(".")[2] for key in KEYS}
    for key in sorted(KEYS) * (50 if torture else 10):
        section, _, word = key.rpartition(".")
        if (wrong := edits(word, chance)) in words or not wrong:
            continue
        advice = advice_for_key((*filter(None, [section]), wrong), "x")
        found = re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", advice) is not None
        with suppress(AssertionError), trial(MISSPELT):
            assert found, (wrong, advice)
        right, asked = right + found, asked + 1
    assert right >= 0.95 * asked, f"{right} of {asked}"
