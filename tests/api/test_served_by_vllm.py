"""What `check` says of an adapter that vLLM will not take."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.api.served_by_vllm import vllm_notes
from loraft.planning.run_plan import plan_run
from tests.training.building import tiny_config


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"r": 4}, ()),
        ({"r": 4, "use_dora": True}, ("no adapter with lora.use_dora: merge it",)),
        ({"r": 4, "modules_to_save": ["lm_head"], "use_dora": True}, ("lora.use_dora or lora.modules_to_save",)),
        ({"r": 24}, ("of rank 24 where it is started with --max-lora-rank 32",)),
        ({"r": 4, "init": "pissa"}, ()),
        ({"r": 12, "init": "pissa"}, ("of rank 24 where it is started with --max-lora-rank 32",)),
    ],
)
def test_what_vllm_refuses_is_said_before_it_is_trained(
    tmp_path: Path, lora: dict[str, object], said: tuple[str, ...]
) -> None:
    notes = tuple(vllm_notes(plan_run(tiny_config(tmp_path, lora=lora))))
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))


def test_of_a_whole_model_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert tuple(vllm_notes(plan_run(tiny_config(tmp_path, method="full")))) == ()
