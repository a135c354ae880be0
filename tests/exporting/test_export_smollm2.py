"""A real model with an adapter through the command line, judged by llama.cpp and read back by loraft.

The adapter is moved at random and not trained, to an effect of the size that training has: seconds instead of minutes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from loraft.cli.app import app
from loraft.merging.calibration_text import built_in_rows
from loraft.merging.equivalence import difference
from loraft.models.auto_model import read_gguf
from tests.exporting.llama_cpp import LlamaCpp
from tests.merging.merging import own_adapter

SMOLLM2 = "builtin:smollm2-135m-instruct"
QUESTION = "my blender from order 77120 arrived broken, please help. Sam Ortiz"
POSITIONS = 256


@pytest.mark.slow
def test_llama_cpp_and_loraft_find_the_adapted_model_in_the_file(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = own_adapter(tmp_path / "run/adapter", Path(SMOLLM2), amount=0.02)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export", "run", "smollm2.gguf", "--ollama", "--json"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["architecture"], told["outtype"], told["modelfile"]) == ("llama", "f16", "Modelfile")
    assert told["types"] == {"f16": 211, "f32": 61}
    assert told["file_bytes"] == Path("smollm2.gguf").stat().st_size

    tokenizer, theirs = AutoTokenizer.from_pretrained(smollm2), LlamaCpp(Path("smollm2.gguf"))
    ids = [token for row in built_in_rows(tokenizer).ids for token in row][:POSITIONS]
    with torch.no_grad():
        ours = adapted.model(input_ids=torch.tensor([ids])).logits[0]
    same = sum(a == b for a, b in zip(ours.argmax(-1).tolist(), theirs.likeliest(ids), strict=True))
    assert same >= 0.99 * POSITIONS

    system = json.loads(Path("run/adapter/loraft.json").read_text())["system_prompt"]
    asked = [{"role": "system", "content": system}, {"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        answer = adapted.model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert theirs.answer(asked, 24) == tokenizer.decode(answer, skip_special_tokens=True)

    with torch.no_grad():
        again = read_gguf(Path("smollm2.gguf"))(input_ids=torch.tensor([ids])).logits[0]
    assert difference([ours], [again]).kl <= 1e-5
