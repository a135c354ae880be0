"""Tiny runs whose layers are wide enough for bitsandbytes' kernels on CUDA, which warn of fewer inputs than a block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loraft.config.schema import RunConfig
from tests.tiny import save_tiny, tiny_sizes
from tests.training.building import MODEL_OF, tiny_config

WIDER = {32: 64, 48: 128}
HEAD_SIZES = ("head_dim", "d_kv")
NEVER_LEFT_OUT = {"m2m_100": {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}}
"""A layer that is left out of one of two steps does not learn."""


def wide_sizes(model_type: str) -> dict[str, Any]:
    """The sizes of the tiny model of a family that are other ones: widths are a multiple of 64."""
    sizes = tiny_sizes(model_type)
    wide = {name: WIDER[size] for name, size in sizes.items() if isinstance(size, int) and size in WIDER}
    return wide | {name: 16 for name in HEAD_SIZES if name in sizes} | NEVER_LEFT_OUT.get(model_type, {})


def wide_config(folder: Path, **options: Any) -> RunConfig:
    """`tiny_config` over a model of such sizes."""
    model_type = options.get("model_type", MODEL_OF[options.get("task", "causal_lm")])
    config = tiny_config(folder, **options)
    if not (folder / "wide").exists():
        save_tiny(folder / "wide", model_type, **wide_sizes(model_type))
    model = config.model.model_copy(update={"name_or_path": str(folder / "wide")})
    return config.model_copy(update={"model": model})
