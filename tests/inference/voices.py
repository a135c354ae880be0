"""What the tests of sessions start from: a tiny base on disk, and adapters trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from loraft.adapters.inject import attach
from loraft.adapters.save_adapter import save_adapter
from loraft.config.schema import RunConfig
from loraft.config.sections import ModelSection
from loraft.models.device import select_device
from loraft.models.load_model import load_model
from loraft.tokenization.plain_text_rows import Seq2SeqRenderer
from tests.adapters.setting import FACTS, Rendering, disturb
from tests.tiny import CHATML, save_tiny

IDS = torch.tensor([[5, 9, 200, 17, 33, 8, 60, 4]])
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "attention"},
    "wide": {"r": 8, "alpha": 3, "target_modules": "mlp", "layers": "last:1"},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "whole": {"modules_to_save": ["lm_head", "norm"], "target_modules": "attention"},
}
"""Adapters that differ in all that can differ between two on one base."""


def base_in(folder: Path, model_type: str = "llama", **sizes: Any) -> Path:
    """A tiny base, written once."""
    if not (folder / "config.json").is_file():
        sizes = {"tie_word_embeddings": False} | sizes if model_type == "llama" else sizes
        save_tiny(folder, model_type, **sizes)
    return folder


def adapter_in(
    folder: Path,
    base: Path | str,
    *,
    method: str = "lora",
    dtype: str = "float32",
    seed: int = 1,
    system_prompt: str | None = None,
    chat_template: str = CHATML,
    **lora: Any,
) -> Path:
    """An adapter with an effect, saved as a run saves it."""
    section = ModelSection(name_or_path=str(base), dtype=dtype)  # type: ignore[arg-type]
    config = RunConfig.model_validate(
        {
            "method": method,
            "seed": seed,
            "model": section.model_dump(),
            "lora": {"r": 4, "alpha": 8, **lora},
            "data": {"train": "train.jsonl"},
            "generation": {"max_new_tokens": 12, "temperature": 0},
        }
    )
    loaded = load_model(
        section, select_device(section), quantization=config.quantization if method == "qlora" else None
    )
    adapted = attach(loaded, config)
    disturb(adapted.trainable, seed=seed + 10)
    rendering = Rendering(chat_template, system_prompt=system_prompt)
    save_adapter(adapted, folder, config=config, renderer=rendering, facts=FACTS)  # type: ignore[arg-type]
    return folder


def pair_adapter_in(
    folder: Path,
    base: Path | str,
    *,
    prefix: str = "",
    languages: tuple[str, str] | None = None,
    seed: int = 1,
    amount: float = 0.1,
    **lora: Any,
) -> Path:
    """An adapter of an encoder-decoder with an effect, saved as a run saves it."""
    section = ModelSection(name_or_path=str(base), dtype="float32")
    config = RunConfig.model_validate(
        {
            "task": "seq2seq_lm",
            "model": section.model_dump(),
            "lora": {"r": 4, "alpha": 8, **lora},
            "data": {"train": "train.jsonl"},
            "generation": {"max_new_tokens": 12},
        }
    )
    loaded = load_model(section, select_device(section), group=None)
    source, target = languages or (None, None)
    renderer = Seq2SeqRenderer(loaded.tokenizer, prefix=prefix, source_lang=source, target_lang=target)
    adapted = attach(loaded, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.trainable.values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=amount)
    save_adapter(adapted, folder, config=config, renderer=renderer, facts=FACTS)
    return folder


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits.float()  # type: ignore[no-any-return]
