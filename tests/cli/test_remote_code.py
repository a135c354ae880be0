"""Code that a model brings runs with --trust-remote-code alone, with every command, and is never saved."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import loraft as api
from loraft.errors import InvalidInputError, ModelError
from tests.cli.running import loraft, refused
from tests.tiny import save_tiny
from tests.words import Wording

SHORT = api.GenerationRequest(max_new_tokens=1, temperature=0)
TRUST = "--trust-remote-code"
CONFIGURATION = """
from pathlib import Path

from transformers import LlamaConfig

Path({mark!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = {model_type!r}
"""
MODELING = '''
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    """A Llama that says the opposite."""

    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = -output.logits
        return output
'''


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies code to before it runs it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for module in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, module)


@pytest.fixture(params=["own", "llama"])
def model_type(request: pytest.FixtureRequest) -> str:
    """What config.json calls the type: one that transformers does not know, and one that it has a class for."""
    return str(request.param)


@pytest.fixture
def place(tmp_path: Path, model_type: str) -> Path:
    """A folder with rows, a config, and a model that brings its code, which leaves a file `ran` where it runs."""
    model = save_tiny(tmp_path / "model", tie_word_embeddings=False)
    settings = json.loads((model / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    named = {"model_type": model_type, "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    (model / "config.json").write_text(json.dumps(settings | named))
    mark = str(tmp_path / "ran")
    (model / "configuration_own.py").write_text(CONFIGURATION.format(mark=mark, model_type=model_type))
    (model / "modeling_own.py").write_text(MODELING)
    rows = [{"prompt": f"the order {number}", "completion": "is late"} for number in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.yaml").write_text(
        "model: {name_or_path: model, dtype: float32}\nlora: {r: 4}\n"
        "data: {train: train.jsonl, eval: null, max_length: 64}\n"
        "training: {output_dir: run, max_steps: 2, save_steps: 1, learning_rate: 0.01, logging_steps: 1}\n"
    )
    return tmp_path


def done(place: Path, *words: str) -> Any:
    """What a command answers as JSON, after it has said that code runs."""
    ended = loraft(*words, TRUST, "--json", cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert "--trust-remote-code: what code the model brings runs here" in " ".join(ended.stderr.split())
    return json.loads(ended.stdout)


@pytest.mark.slow_after(1)
def test_no_command_runs_code_that_nobody_trusts(place: Path, model_type: str) -> None:
    for words in (
        ("check", "c.yaml"),
        ("preview", "c.yaml"),
        ("train", "c.yaml"),
        ("generate", "model", "--prompt", "the", "--max-new-tokens", "2"),
        ("inspect-layers", "model"),
    ):
        ended = loraft(*words, cwd=place)
        assert ended.returncode == (2 if model_type == "own" else 0)
        assert (TRUST in ended.stderr) == (model_type == "own")
    assert not (place / "ran").exists()


def test_c42_no_config_switches_it_on(place: Path) -> None:
    for key in ("trust_remote_code", "model.trust_remote_code"):
        assert "never switched on by a file" in refused(loraft("check", "c.yaml", f"{key}=true", cwd=place))


@pytest.mark.slow
def test_trusted_code_is_trained_on_and_not_saved(place: Path, model_type: str, wording: Wording) -> None:
    assert "it runs, as" in " ".join(done(place, "check", "c.yaml")["notes"])
    assert (place / "ran").exists()
    trained = loraft("train", "c.yaml", TRUST, cwd=place)
    assert (trained.returncode, "Try it:  loraft generate run" in trained.stdout) == (0, True), trained.stderr
    assert json.loads((place / "run" / "manifest.json").read_text())["trust_remote_code"] is True
    assert not list((place / "run").rglob("*.py"))
    assert not [file for file in (place / "run").rglob("*.json") if '"auto_map"' in file.read_text()]
    ask = ("--prompt", "the order", "--max-new-tokens", "4", "--temperature", "0")
    done(place, "generate", "run", *ask)
    wording(refused(loraft("generate", "run", *ask, cwd=place)))
    wording(refused(loraft("merge", "run", TRUST, cwd=place)))
    wording(refused(loraft("check", "c.yaml", "method=full", "training.output_dir=other", TRUST, cwd=place)))


@pytest.mark.slow
def test_a_resumed_run_needs_it_again(place: Path, model_type: str, wording: Wording) -> None:
    done(place, "train", "c.yaml")
    goes_on = ("train", "c.yaml", "--resume", "training.max_steps=3")
    wording(re.sub(r"The nearest.*", "", refused(loraft(*goes_on, cwd=place))))
    assert done(place, *goes_on)["steps"] == 3


def test_what_runs_is_the_models_own_code(place: Path) -> None:
    """Its logits are the opposite of those of transformers' class on the same weights."""
    ask = ("--prompt", "the order", "--max-new-tokens", "1", "--temperature", "0", "--dtype", "float32")
    own = done(place, "generate", "model", *ask)
    settings = json.loads((place / "model" / "config.json").read_text())
    del settings["auto_map"]
    (place / "model" / "config.json").write_text(json.dumps(settings | {"model_type": "llama"}))
    plain = json.loads(loraft("generate", "model", *ask, "--json", cwd=place).stdout)
    assert own["token_ids"] != plain["token_ids"]


def test_code_of_another_model_is_not_run(place: Path, wording: Wording) -> None:
    settings = json.loads((place / "model" / "config.json").read_text())
    settings["auto_map"]["AutoModelForCausalLM"] = "someone/else--modeling.Model"
    (place / "model" / "config.json").write_text(json.dumps(settings))
    wording(refused(loraft("check", "c.yaml", TRUST, cwd=place)))


def test_code_of_another_model_does_not_run_to_read_the_config_either(place: Path) -> None:
    other = (place / "model").rename(place / "other")
    model = save_tiny(place / "model")
    settings = json.loads((other / "config.json").read_text())
    settings["auto_map"] = {"AutoConfig": f"{other}--configuration_own.OwnConfig"}
    (model / "config.json").write_text(json.dumps(settings))
    assert "names code of another model" in refused(loraft("check", "c.yaml", TRUST, cwd=place))
    assert not (place / "ran").exists()


def test_code_of_another_models_tokenizer_is_not_run(place: Path) -> None:
    other = place / "other"
    other.mkdir()
    (other / "tokenization_own.py").write_text(f"from pathlib import Path\nPath({str(place / 'ran')!r}).touch()\n")
    settings = json.loads((place / "model" / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, f"{other}--tokenization_own.Own"]}}
    save_tiny(place / "model")  # which itself brings no code
    (place / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "names code of another model" in refused(loraft("check", "c.yaml", TRUST, cwd=place))
    assert not (place / "ran").exists()


@pytest.mark.slow_after(1)
def test_the_folder_may_be_called_anything(place: Path) -> None:
    """Each folder in the cache of the Hub has two hyphens in its name, which part two names in transformers' words."""
    (place / "model").rename(place / "models--org--own")
    ask = ("--prompt", "the order", "--max-new-tokens", "1", "--temperature", "0")
    assert len(done(place, "generate", "models--org--own", *ask)["token_ids"]) == 1


@pytest.mark.parametrize("model_type", ["own"], indirect=True)
def test_from_python_it_is_a_parameter_of_a_call_and_ends_with_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    config = api.load_config("c.yaml")
    assert api.check(config, trust_remote_code=True).model["parameters"] > 0
    with pytest.raises(InvalidInputError, match="trust_remote_code=True"):
        api.check(config)
    answered = api.generate(api.ModelRequest("model", trust_remote_code=True), prompt="the", options=SHORT)
    assert len(list(answered)) == 1
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        api.generate("model", prompt="the")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["own"], indirect=True)
def test_processes_of_a_command_are_trusted_with_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(place / "modules"))
    compared = done(place, "compare", "c.yaml", "--methods", "lora", "--steps", "2")
    assert compared["methods"][0]["measured"]["trained_parameters"] > 0
    refused(loraft("compare", "c.yaml", "--methods", "lora", "--steps", "2", cwd=place))
