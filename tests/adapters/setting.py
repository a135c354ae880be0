"""What the tests of adapters start from: a tiny base on disk and loaded, a config, a renderer, facts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraft.adapters.model_card import TrainingFacts
from loraft.config.schema import RunConfig
from loraft.models.device import DeviceConfig
from loraft.models.load_model import LoadedModel
from loraft.models.registry import FAMILIES
from tests.tiny import CHATML, save_tiny

FACTS = TrainingFacts(steps=3, epochs=0.5, rows=6, trained_tokens=120, train_loss=2.0, eval_loss=1.5, eval_rows=2)
IDS = torch.tensor([[5, 9, 200, 17, 33, 8, 60, 4]])


@dataclass(frozen=True)
class Rendering:
    """What of a renderer is saved with an adapter."""

    chat_template: str | None = CHATML
    stop_ids: tuple[int, ...] = (2, 1)
    labels: tuple[str, ...] = ()
    system_prompt: str | None = "Answer in JSON."

    @property
    def recorded(self) -> dict[str, object]:
        """What is saved beside the weights."""
        return {"system_prompt": self.system_prompt}


def run_config(method: str = "lora", *, model: str = "base", seed: int = 0, **lora: Any) -> RunConfig:
    lora = {"r": 4, "alpha": 8, **lora}
    return RunConfig.model_validate(
        {
            "method": method,
            "seed": seed,
            "model": {"name_or_path": model},
            "lora": lora,
            "data": {"train": "data/train.jsonl"},
        }
    )


def tiny_loaded(
    folder: Path,
    model_type: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    fingerprint: str = "f" * 64,
    **sizes: Any,
) -> LoadedModel:
    """A tiny base, written to `folder` once and loaded from there as `load_model` would."""
    if not (folder / "config.json").is_file():
        save_tiny(folder, model_type, **sizes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
    return LoadedModel(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        family=FAMILIES[model_type],
        placement=DeviceConfig("cpu", dtype, "a test's CPU", 0, 0, ()),
        folder=folder,
        name=str(folder),
        fingerprint=fingerprint,
        notes=(),
    )


def disturb(parameters: dict[str, nn.Parameter], seed: int = 1) -> None:
    """Move every trained parameter, as training would: B leaves zero, and an adapter has an effect."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()
