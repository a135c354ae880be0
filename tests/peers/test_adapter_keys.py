"""Patterns of module names."""

from __future__ import annotations

import pytest

from loraft.peers.adapter_keys import names_of_pattern


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (
            r"model.language_model.layers.[\d]+.(mlp|self_attn).(up|down|gate)_proj",
            ["up_proj", "down_proj", "gate_proj"],
        ),
        (r"model\.layers\.\d+\.self_attn\.q_proj", ["q_proj"]),
        (r".*\.(q_proj|v_proj)", ["q_proj", "v_proj"]),
        (
            r"model\.layers\.\d+\.self_attn\.(q|k)_proj|model\.layers\.\d+\.mlp\.down_proj",
            ["q_proj", "k_proj", "down_proj"],
        ),
        (
            r"model\.layers\.\d+\.(self_attn\.(q|k)_proj|mlp\.(shared_experts\.)?(gate|up)_proj)",
            ["q_proj", "k_proj", "gate_proj", "up_proj"],
        ),
        (r".*(?:q_proj|v_proj)$", ["q_proj", "v_proj"]),
        (r".*q_proj|.*visual.*", []),
        (r"(?!.*visual).*", []),
        (r"layers.*", []),
        ("(" * 1000 + "q_proj" + ")" * 1000, []),
    ],
)
def test_a_plain_choice_at_the_end_of_a_pattern_is_a_list_of_names(pattern: str, names: list[str]) -> None:
    assert names_of_pattern(pattern) == names
