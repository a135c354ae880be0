"""`loraft import`: what is printed and written, what is refused, and that `check` passes what is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loraft.config.config_file import load_config
from tests.cli.conftest import Loraft
from tests.cli.running import loraft as run_loraft
from tests.training.building import write_rows
from tests.words import Wording

AXOLOTL = """\
base_model: {model}
datasets:
  - path: rows.jsonl
    type: alpaca
val_set_size: 0.1
adapter: qlora
load_in_4bit: true
lora_r: 8
lora_alpha: 16
lora_target_linear: true
sequence_len: 256
sample_packing: true
micro_batch_size: 2
num_epochs: 1
max_steps: 2
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
tf32: true
warmup_ratio: 0.1
evals_per_epoch: 1
wandb_entity: me
special_tokens: {{pad_token: "<|endoftext|>"}}
output_dir: out
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of axolotl in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    path = Path("theirs.yml")
    path.write_text(AXOLOTL.format(model="a/b"))
    return path


def test_the_table_and_the_file(theirs: Path, loraft: Loraft, wording: Wording) -> None:
    result = loraft("import", "theirs.yml", "ours.yaml")
    assert result.exit_code == 0, result.stderr
    wording(result.stdout)
    wording(Path("ours.yaml").read_text())
    assert load_config("ours.yaml").method == "qlora"


def test_what_is_given_beside_a_config_is_said_as_it_is_typed(loraft: Loraft, tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text("model_name_or_path: a/b\nstage: sft\ndataset: rows\ndo_train: true\noverwrite_output_dir: true\n")
    table = loraft("import", str(path)).stderr
    assert "loraft train CONFIG --overwrite" in table
    document = json.loads(loraft("import", str(path), "--json").stdout)
    assert "loraft.train" not in f"{table}{document['keys']}{document['text']}"


def test_without_a_place_the_config_is_the_output_and_the_table_beside_it(theirs: Path, loraft: Loraft) -> None:
    result = loraft("import", "theirs.yml")
    Path("ours.yaml").write_text(result.stdout)
    assert load_config("ours.yaml").training.max_steps == 2
    assert "lora_target_linear" in result.stderr


def test_json_has_each_key_with_its_place(theirs: Path, loraft: Loraft) -> None:
    found = json.loads(loraft("import", "theirs.yml", "ours.yaml", "--json").stdout)
    rows = {row["key"]: row for row in found["keys"]}
    assert rows["lora_r"]["becomes"] == {"lora.r": 8}
    assert rows["tf32"]["where"] == "theirs.yml:20:1"
    assert found["text"] == Path("ours.yaml").read_text()


def test_a_file_that_is_there_is_replaced_only_when_that_is_said(
    theirs: Path, loraft: Loraft, wording: Wording
) -> None:
    Path("ours.yaml").write_text("mine")
    for words in (["ours.yaml"], ["theirs.yml", "--overwrite"], ["ours.txt"], ["absent/ours.yaml"]):
        result = loraft("import", "theirs.yml", *words)
        assert result.exit_code == 2
        wording(result.stderr)
    assert Path("ours.yaml").read_text() == "mine"
    assert theirs.read_text().startswith("base_model")
    assert loraft("import", "theirs.yml", "ours.yaml", "--overwrite").exit_code == 0
    assert load_config("ours.yaml").lora.r == 8


@pytest.mark.parametrize("text", ["rl: grpo\n", "frobnicate: 3\n", "hub_token: hf_abc\n"])
def test_what_cannot_be_had_or_is_not_known_is_told(theirs: Path, loraft: Loraft, wording: Wording, text: str) -> None:
    theirs.write_text(theirs.read_text() + text)
    result = loraft("import", "theirs.yml", "ours.yaml")
    assert result.exit_code == (2 if text.startswith("rl") else 0)
    assert Path("ours.yaml").exists() == (result.exit_code == 0)
    wording(result.stderr)


def test_importing_loads_no_torch(theirs: Path) -> None:
    program = (
        "import sys; from loraft.__main__ import main\ntry: main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    words = ["import", str(theirs), "--json"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.slow
def test_what_is_imported_is_checked_and_trains_on_the_real_model(tmp_path: Path, smollm2: Path) -> None:
    rows = [{"instruction": f"What is {number} and {number}?", "output": str(2 * number)} for number in range(30)]
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "theirs.yml").write_text(AXOLOTL.format(model=smollm2))
    for words in (["import", "theirs.yml", "ours.yaml"], ["check", "ours.yaml"], ["train", "ours.yaml"]):
        done = run_loraft(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert any((tmp_path / "out").rglob("adapter_model.safetensors"))
