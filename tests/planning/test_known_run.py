"""What is known of a run before anything of it is decided."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.planning.known_run import known_run
from tests.training.building import tiny_config


@pytest.mark.parametrize(
    ("saved", "layers"), [([], 1), (["lm_head"], 1), (["embed_tokens"], 3), (["layers.1.input_layernorm"], 2)]
)
def test_layers_above_a_module_that_is_trained_whole_keep_activations(
    tmp_path: Path, saved: list[str], layers: int
) -> None:
    config = tiny_config(tmp_path, lora__layers="last:1", lora__modules_to_save=saved)
    assert known_run(config).shape.graph_layers("decoder") == layers
