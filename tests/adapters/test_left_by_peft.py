"""What peft takes for something else by its name."""

from __future__ import annotations

import pytest

from loraft.adapters.left_by_peft import unread_by_peft
from loraft.models.modules import linear_modules
from tests.tiny import tiny_model
from tests.zoo.models import build


@pytest.mark.parametrize(
    ("model_type", "unread"),
    [
        (
            "inkling2_text",
            ["model.layers.1.self_attn.k_sconv.weight_proj", "model.layers.1.self_attn.v_sconv.weight_proj"],
        ),
        ("mixtral", []),
    ],
)
def test_what_peft_would_rename_is_known_before_anything_is_trained(model_type: str, unread: list[str]) -> None:
    """Of mixtral it renames the experts alone."""
    model = build(model_type, "causal") if unread else tiny_model(model_type)
    assert unread_by_peft(model, linear_modules(model)) == unread
