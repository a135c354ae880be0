"""Adapters of somebody else: changed by chance in config, record and tensors, and named so as to leave their folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loraft.adapters.adapter_files import read_adapter
from loraft.adapters.lora_factors import check_adapter_name
from loraft.adapters.metadata import adapter_in as target_in
from loraft.adapters.save_adapter import load_adapters
from loraft.errors import InvalidInputError, LoraftError
from loraft.models.safetensors_index import read_headers
from tests.adapters.setting import tiny_loaded
from tests.cli.running import loraft, refused
from tests.converting.planted import planted
from tests.faults.conftest import Trial
from tests.inference.voices import IDS, adapter_in, base_in

MUTATED = "a mutated adapter, config or tensors: refused, or told, or the same answers"
FOREIGN = "a mutated adapter of another tool: no traceback, nothing runs, no number that is none"
LEAVES = "a name or a link that leads out of a folder: nothing is written outside"
JUNK: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1e400,
        10**30,
        "",
        "x",
        "../../x",
        "/etc/passwd",
        [],
        {},
        [[]],
        ["(a+)+$"],
        "(a+)+b",
        "\ud800",
    ),
    *({"a": {"b": 1}}, ["q_proj", 3], "builtin:x", "hf://x", "$(touch ran)", "{{ 7*7 }}", "__import__('os')", "LOHA"),
)
KEYS = (
    *("trust_remote_code", "auto_mapping", "base_model_class", "lora_alpha", "r", "peft_type", "target_modules"),
    *("modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "bias", "use_dora"),
    *("loftq_config", "init_lora_weights", "megatron_config", "trainable_token_indices", "target_parameters"),
    *("task_type", "revision", "base_model_name_or_path", "exclude_modules", "arrow_config", "corda_config"),
)
Change = Callable[[Path, random.Random], None]


def of_json(name: str) -> Change:
    """Give a key of a JSON file, known or not, another value."""

    def change(folder: Path, chance: random.Random) -> None:
        values = json.loads((folder / name).read_text())
        for _ in range(chance.randint(1, 3)):
            values[chance.choice([*values, *KEYS])] = chance.choice(JUNK)
        (folder / name).write_text(json.dumps(values))

    return change


def bytes_of(name: str, first: int = 0) -> Change:
    """Change some bytes of a file, of its first `first` where that is given, or cut it."""

    def change(folder: Path, chance: random.Random) -> None:
        raw = bytearray((folder / name).read_bytes())
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(min(first or len(raw), len(raw)))] ^= chance.randint(1, 255)
        (folder / name).write_bytes(raw[: chance.randrange(len(raw))] if chance.random() < 0.2 else raw)

    return change


def of_header(folder: Path, chance: random.Random) -> None:
    """Let the header of the tensors lie: of a length, a shape, a dtype, a place or a name."""
    path = folder / "adapter_model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    name = chance.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    start, stop = entry["data_offsets"]
    match chance.randrange(8):
        case 0:
            entry["shape"] = chance.choice([[-1, 4], [2**40, 2**40], [], entry["shape"][::-1], [0], [1.5, 2], "x"])
        case 1:
            entry["dtype"] = chance.choice(["F64", "BF16", "I64", "BOOL", "F8_E4M3", "C64", "object", None, 3])
        case 2:
            entry["data_offsets"] = chance.choice(
                [
                    [start, stop + 4],
                    [stop, start],
                    [-8, stop],
                    [0, 2**62],
                    [start + 1, stop + 1],
                    [0, len(data) * 2],
                    [],
                ]
            )
        case 3:
            header[chance.choice(["../../x", "", "a.lora_A.weight", "base_model.model.x", "\u0000"])] = header.pop(name)
        case 4:
            header[f"{name}.again"] = entry
        case 5:
            del header[name]
        case 6:
            header["__metadata__"] = chance.choice([{"a": 1}, [], "x", {"format": "pkl"}, {"x": "y" * 100_000}])
        case _:
            data = data[: chance.randrange(len(data))]
    text = json.dumps(header).encode()
    said = chance.choice([len(text)] * 6 + [2**63, len(text) + 10**6, 0])
    path.write_bytes(struct.pack("<Q", said) + text + data)


def with_pickle(folder: Path, chance: random.Random) -> None:
    """Put a pickle in the place of a file, or beside it."""
    name = chance.choice(["adapter_model.safetensors", "adapter_model.bin", "adapter_config.json", "loraft.json"])
    (folder / name).write_bytes(planted(folder.parent / "ran"))


CHANGES: tuple[Change, ...] = (
    *(of_json("adapter_config.json"), of_json("adapter_config.json"), bytes_of("adapter_config.json")),
    *(of_header, of_header, bytes_of("adapter_model.safetensors", 600), bytes_of("adapter_model.safetensors")),
    *(of_json("loraft.json"), bytes_of("loraft.json"), with_pickle),
)


BASE: dict[Path, str] = {}
"""The fingerprint of the base, as its adapter recorded it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and an adapter as a run saves it."""
    folder = tmp_path_factory.mktemp("whole")
    base = base_in(folder / "base", num_hidden_layers=1)
    adapter = adapter_in(folder / "adapter", base)
    BASE[base] = json.loads((adapter / "loraft.json").read_text())["base"]["fingerprint"]
    return base, adapter


def answers(base: Path, folder: Path) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The logits of an adapter on its base, and what there is to say of it.

    Raises:
        LoraftError: It is refused.
    """
    target_in(folder)
    loaded = tiny_loaded(base, fingerprint=BASE[base])
    with warnings.catch_warnings(action="ignore"):  # as the command line has it: peft warns of what matches nothing
        adapted = load_adapters(loaded, {"default": folder})
    with torch.no_grad():
        return adapted.model(input_ids=IDS).logits, (*adapted.notes, *read_adapter(folder).check_base(BASE[base]))


@pytest.mark.slow
@pytest.mark.parametrize("ours", [True, False], ids=["with its record", "of another tool"])
def test_a_mutated_adapter_is_never_taken_without_a_word(
    ours: bool, whole: tuple[Path, Path], trial: Trial, torture: bool, tmp_path: Path
) -> None:
    base, adapter = whole
    expected, said = answers(base, adapter)
    accepted = 0
    for number in range(1_000 if torture else 150):
        chance = random.Random(f"{ours}{number}")
        folder = shutil.copytree(adapter, tmp_path / "a" / "adapter")
        if not ours:
            (folder / "loraft.json").unlink()
        change = chance.choice(CHANGES if ours else CHANGES[:7])
        with trial(MUTATED if ours else FOREIGN):
            change(folder, chance)
            try:
                logits, notes = answers(base, folder)
            except LoraftError as error:
                assert error.exit_code == 2  # noqa: PT017
            else:
                accepted += 1
                assert bool(torch.isfinite(logits).all())
                assert torch.equal(logits, expected) or notes != said or not ours, number
            assert sorted(os.listdir(tmp_path / "a")) == ["adapter"], number
        shutil.rmtree(tmp_path / "a")
    assert accepted < (500 if torture else 75)


@pytest.mark.slow
def test_so_through_the_command_line(whole: tuple[Path, Path], trial: Trial, tmp_path: Path) -> None:
    for number in range(12):
        chance = random.Random(number)
        folder = shutil.copytree(whole[1], tmp_path / str(number) / "adapter")
        with trial(MUTATED):
            CHANGES[number % len(CHANGES)](folder, chance)
            done = loraft("generate", str(folder), "-p", "hello", "--max-new-tokens", "1", cwd=folder.parent)
            assert done.returncode in (0, 2), done.stderr
            assert "Traceback" not in done.stderr
            assert os.listdir(folder.parent) == ["adapter"]


NAMES = (
    *("..", ".", "../x", "../../x", "/tmp/x", "/", "a/b", "a\\b", "~", "~/x", "a/../../x", "x/", "./x", "C:\\x", ""),
    *("a\0b", "a\nb", " ", "a b", "x" * 65, "é", "\u2025/x", "\uff0e\uff0e", "$HOME", "`x`", "-rf", "base", "none"),
)
SHARDS = ("../x.safetensors", "/tmp/x.safetensors", "a/b.safetensors", "..", "x.safetensors/../../y.safetensors", "\0")


@pytest.mark.slow
def test_no_name_is_a_path(whole: tuple[Path, Path], trial: Trial, tmp_path: Path) -> None:
    base, adapter = whole
    for name in NAMES:
        with trial(LEAVES):
            if name == "-rf":  # a name like any other
                check_adapter_name(name)
                continue
            with pytest.raises(InvalidInputError):
                load_adapters(tiny_loaded(base), {name: adapter})
    for name in ("../x", "/tmp/x", "a/b"):
        with trial(LEAVES):
            asked = ("generate", str(base), "--adapter", f"{name}={adapter}", "-p", "x")
            refused(loraft(*asked, cwd=tmp_path))
    for shard in SHARDS:
        with trial(LEAVES):
            folder = tmp_path / "model"
            folder.mkdir(exist_ok=True)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
            with pytest.raises(InvalidInputError):
                read_headers(folder)
    assert os.listdir(tmp_path) == ["model"]


LINKED = ("adapter_model.safetensors", "adapter_config.json", "loraft.json", "tokenizer.json", "README.md", "merged")


@pytest.mark.slow
def test_no_link_leads_a_writer_outside(whole: tuple[Path, Path], trial: Trial, tmp_path: Path) -> None:
    """Of an adapter's files and of the places that a merge writes to; what lies outside is as it was."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    links: list[tuple[str, Callable[[Path], object]]] = [
        *((name, lambda at: at.symlink_to(outside / "mine")) for name in LINKED),
        *((name, lambda at: at.symlink_to(outside / "new")) for name in LINKED),
        ("merged", lambda at: at.symlink_to(outside)),
        (".merged.previous", lambda at: at.symlink_to(outside)),
        (".merged.partial-1", lambda at: at.symlink_to(outside)),
        (f".merged.partial-{os.getpid()}", lambda at: at.symlink_to(outside)),
    ]
    for name, link in links:
        with trial(LEAVES):
            folder = shutil.copytree(whole[1], tmp_path / "run" / "adapter")
            place = (folder.parent if "merged" in name else folder) / name
            place.unlink(missing_ok=True)
            link(place)
            done = loraft("merge", "adapter", "merged", "--no-verify", cwd=folder.parent)
            assert "Traceback" not in done.stderr, done.stderr
            assert [(file.name, file.read_text()) for file in outside.iterdir()] == [("mine", "mine")], name
        shutil.rmtree(tmp_path / "run")


@pytest.mark.slow
def test_c42_no_file_lets_code_run(whole: tuple[Path, Path], trial: Trial, tmp_path: Path) -> None:
    """Neither an adapter's config nor a record nor a config of a run, whatever it says of trust."""
    for name in ("adapter_config.json", "loraft.json"):
        with trial("trust_remote_code in a file: no code runs"):
            folder = shutil.copytree(whole[1], tmp_path / name / "adapter")
            (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
            values = json.loads((folder / name).read_text())
            code = {"auto_map": {"AutoConfig": "evil.C"}, "auto_mapping": {"parent_library": "evil"}}
            (folder / name).write_text(json.dumps({**values, "trust_remote_code": True, **code}))
            loraft("generate", "adapter", "-p", "x", "--max-new-tokens", "1", cwd=folder.parent)
            assert not (tmp_path / "ran").exists()
    with trial("trust_remote_code in a file: no code runs"):
        text = "model: {name_or_path: x, trust_remote_code: true}\ndata: {train: rows.jsonl}\n"
        (tmp_path / "c.yaml").write_text(text)
        assert "never switched on by a file" in refused(loraft("check", "c.yaml", cwd=tmp_path))
