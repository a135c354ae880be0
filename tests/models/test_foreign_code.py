"""Code that a model names is never passed on."""

from __future__ import annotations

import json
from pathlib import Path

from loraft.models.hf_config import code_notes, drop_code

EVIL = {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", None]}}


def name_code(file: Path) -> None:
    """Let a file of a model name code, as a stranger's would."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **EVIL}))


def test_every_file_is_freed_of_code_and_keeps_the_rest(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text('{"kept": "ü"}')
    assert code_notes(tmp_path) == ()
    untouched = (tmp_path / "generation_config.json").read_bytes()
    (tmp_path / "config.json").write_text(json.dumps({"kept": "ü", "text_config": EVIL}))
    name_code(tmp_path / "config.json")
    name_code(tmp_path / "tokenizer_config.json")
    (note,) = code_notes(tmp_path, tmp_path)
    assert "(auto_map in config.json, tokenizer_config.json)" in note
    drop_code(tmp_path)
    assert code_notes(tmp_path) == ()
    assert json.loads((tmp_path / "config.json").read_text()) == {"kept": "ü", "text_config": {}}
    assert (tmp_path / "generation_config.json").read_bytes() == untouched
