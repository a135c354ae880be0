"""Each family of the table computes in llama.cpp what it computes in transformers, and what does not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraft import api
from loraft.errors import ModelError
from loraft.exporting.gguf_families import GGUF_FAMILIES
from tests.exporting.llama_cpp import LlamaCpp
from tests.tiny import VOCABULARY, mostly_slow, save_tiny
from tests.words import Wording

IDS = torch.randint(3, 300, (16,), generator=torch.Generator().manual_seed(1)).tolist()
FOLLOWING = 1e-4
"""The largest difference of a log-probability in float32: the order of sums."""
BY_TABLE = 1e-2
"""The same for Gemma, of whose GELU llama.cpp has a table in float16."""


def rope(**scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, **scaling}}


SHORT = {"original_max_position_embeddings": 16}
GEMMA3 = {
    "query_pre_attn_scalar": 8,
    "num_hidden_layers": 7,
    "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
}
OF_GEMMA3 = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": GEMMA3,
    "smollm3": {"num_hidden_layers": 5},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "biases and a tied head": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "wide heads": ("llama", {"head_dim": 16}),
    "llama3": ("llama", rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **SHORT)),
    "linear": ("qwen3", rope(rope_type="linear", factor=4.0)),
    "yarn": ("qwen2", rope(rope_type="yarn", factor=4.0, beta_fast=16.0, original_max_position_embeddings=128)),
    "longrope": (
        "phi3",
        rope(
            rope_type="longrope",
            short_factor=[1.1, 1.2, 1.3, 1.4],
            long_factor=[2.0, 3.0, 4.0, 5.0],
            original_max_position_embeddings=256,
        )
        | {"original_max_position_embeddings": 256},
    ),
    "a part of each head": ("phi3", rope(rope_type="default", partial_rotary_factor=0.5)),
    "a rope for each kind of layer": (
        "gemma3_text",
        {**GEMMA3, "rope_parameters": OF_GEMMA3, "final_logit_softcapping": 3.0},
    ),
    "biases of qkv": ("seed_oss", {"attention_bias": True}),
}


def apart(folder: Path, kind: str, context: int = 512, **overrides: Any) -> float:
    """How far log-probabilities of llama.cpp and transformers are apart, at most."""
    save_tiny(folder / "model", kind, **overrides)
    api.export(str(folder / "model"), folder / "model.gguf", outtype="f32")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with torch.no_grad():
        ours = model(torch.tensor([IDS])).logits[0, :-1].double().log_softmax(-1)
    theirs = LlamaCpp(folder / "model.gguf", context=context).log_probabilities(IDS, VOCABULARY)
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("kind", mostly_slow(GGUF_FAMILIES, "llama"))
def test_llama_cpp_computes_what_transformers_does(tmp_path: Path, kind: str) -> None:
    assert apart(tmp_path, kind, **OVERRIDES.get(kind, {})) < (BY_TABLE if "gemma" in kind else FOLLOWING)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_config_can_say_is_computed_too(tmp_path: Path, variant: str) -> None:
    kind, overrides = VARIANTS[variant]
    assert apart(tmp_path, kind, context=256, **overrides) < (BY_TABLE if "gemma" in kind else FOLLOWING)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "no row": ("gpt_neox", {}),
    "activation": ("llama", {"hidden_act": "gelu"}),
    "scale": ("gemma2", {}),
    "window": ("gemma3_text", {"query_pre_attn_scalar": 8}),
    "no rope": ("smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 1, 1]}),
    "dynamic": ("llama", rope(rope_type="dynamic", factor=4.0)),
    "factors": ("qwen3", rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **SHORT)),
    "partial": ("qwen3", rope(rope_type="default", partial_rotary_factor=0.5)),
    "mscale": ("llama", rope(rope_type="yarn", factor=4.0, mscale=2.0, mscale_all_dim=1.0, **SHORT)),
    "bias": ("qwen3", {"attention_bias": True}),
    "heads": ("qwen2", {"head_dim": 16}),
    "head": ("gemma", {"tie_word_embeddings": False}),
    "tied": ("olmo2", {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_would_compute_otherwise_is_refused_before_anything_is_written(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, wording: Wording
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, overrides = REFUSED[case]
    save_tiny(tmp_path / "model", kind, **overrides)
    with pytest.raises(ModelError) as caught:
        api.export("model", "model.gguf")
    wording(str(caught.value))
    assert not list(tmp_path.glob("*model.gguf*"))


def test_where_llama_cpp_has_no_window_the_context_is_the_window(tmp_path: Path, wording: Wording) -> None:
    """Mistral's first model: within its window both attend to the same positions."""
    save_tiny(tmp_path / "model", "mistral", sliding_window=16)
    report = api.export(str(tmp_path / "model"), tmp_path / "model.gguf")
    wording("\n".join(report.warnings))
