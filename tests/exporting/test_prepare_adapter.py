"""An adapter alone: llama.cpp adds it to a base as peft does, and what such a file has no place for is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraft import api
from loraft.errors import InvalidInputError
from tests.exporting.llama_cpp import LlamaCpp
from tests.merging.merging import peft_adapter
from tests.tiny import VOCABULARY, save_tiny
from tests.words import Wording

IDS = torch.randint(3, 300, (8,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("base"), "llama")
    return Path("base")


def log_probabilities(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([IDS])).logits[0, :-1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize(
    "lora",
    [
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        pytest.param({"target_modules": ["lm_head", "q_proj", "k_proj"]}, marks=pytest.mark.slow),
    ],
    ids=["patterns", "head"],
)
def test_llama_cpp_adds_it_to_the_base_as_peft_does(base: Path, lora: dict[str, Any]) -> None:
    adapted = peft_adapter(Path("adapter"), base, **lora)
    api.export(str(base), "base.gguf", outtype="f32")
    report = api.export("adapter", "adapter.gguf", outtype="f32", adapter_only=True)
    assert (report.holds, report.architecture) == ("adapter", "llama")
    ours = log_probabilities(adapted)
    assert (ours - log_probabilities(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))).abs().max() > 0.1
    theirs = LlamaCpp(Path("base.gguf"), lora=Path("adapter.gguf")).log_probabilities(IDS, VOCABULARY)
    assert (ours - theirs).abs().max() < 1e-4


def test_a_weight_is_in_the_file_and_so_is_the_scale_of_each_module(base: Path) -> None:
    from gguf import GGUFReader

    peft_adapter(Path("adapter"), base, target_modules=["v_proj"], use_rslora=True)
    read = {}
    for weight in (1.0, 0.5):
        file = Path(f"{weight}.gguf")
        api.export(None, file, [f"adapter={weight}"], outtype="f32", adapter_only=True)
        read[weight] = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(file).tensors}
    for name, whole in read[1.0].items():
        half = whole / 2 if name.endswith("lora_b") else whole
        torch.testing.assert_close(read[0.5][name], half)


def test_what_is_known_of_it_is_told_as_of_a_merge(base: Path, wording: Wording) -> None:
    peft_adapter(Path("adapter"), base)
    report = api.export("adapter", "adapter.gguf", outtype="q8_0", adapter_only=True)
    wording("\n".join(report.warnings))


BEYOND: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "whole modules": {"modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "rows": {"trainable_token_indices": [5]},
    "biases": {"lora_bias": True, "target_modules": ["q_proj"]},
}


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("case", BEYOND)
def test_what_llama_cpp_has_no_place_for_is_refused(base: Path, case: str, wording: Wording) -> None:
    if case == "biases":
        save_tiny(base, "llama", attention_bias=True)
    peft_adapter(Path("adapter"), base, **BEYOND[case])
    with pytest.raises(InvalidInputError) as caught:
        api.export("adapter", "adapter.gguf", adapter_only=True)
    wording(str(caught.value))
    assert not [*Path().glob("*adapter.gguf*")]


REFUSED: dict[str, dict[str, Any]] = {
    "no adapter": {"target": "base", "adapter_only": True},
    "two": {"target": None, "adapters": ["adapter", "adapter=0.5"], "adapter_only": True},
    "ollama": {"target": "adapter", "adapter_only": True, "ollama": True},
    "a base for no adapter": {"target": "base", "base": "dequantized"},
    "type": {"target": "base", "outtype": "q4_k"},
    "capitals": {"target": "base", "out": "x.GGUF"},
    "no name": {"target": "base", "out": ".gguf"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_itself_is_refused(base: Path, case: str, wording: Wording) -> None:
    peft_adapter(Path("adapter"), base)
    with pytest.raises(InvalidInputError) as caught:
        api.export(**{"out": "out.gguf", **REFUSED[case]})
    wording(str(caught.value))
    assert not [*Path().glob("*.gguf*")]
