"""What peft takes for something else by its name."""

from __future__ import annotations

from loraft.adapters.left_by_peft import unread_by_peft
from loraft.models.modules import linear_modules
from tests.tiny import tiny_model
from tests.zoo.models import build


def test_what_peft_would_rename_is_known_before_anything_is_trained() -> None:
    inkling = build("inkling2_text", "causal")
    unread = unread_by_peft(inkling, linear_modules(inkling))
    assert [name.rpartition(".")[2] for name in unread] == ["weight_proj"] * 2
    mixtral = tiny_model("mixtral")  # of which it renames the experts alone
    assert unread_by_peft(mixtral, linear_modules(mixtral)) == []
