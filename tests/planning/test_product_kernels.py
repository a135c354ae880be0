"""How many kernels of products a CPU keeps, by hand; and in a real run of uneven rows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loraft.planning.base_weights import LayerSizes, StackSizes
from loraft.planning.product_kernels import SET_BY, kept_kernels
from loraft.planning.update_sizes import UpdateSizes

STACK = StackSizes(
    layer=LayerSizes(
        hidden=8, linear_outputs=60, mlp_outputs=40, inner=16, gated=True, written_out=False, fuses=True, heads=2,
        products=4,
    ),
    graph_layers=3,
    batch_tokens=10,
    longest_row=5,
    update=UpdateSizes(dropout=False, dora=False, modules=((8, 8), (8, 16), (16, 8)), shared=8),
    lengths=3,
    attended_lengths=2,
)  # fmt: skip
SHAPES = 3 * (2 * 4 + 3 * (2 + 2)) + 2 * 5


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    known = {"avx512_bf16": True, "amx_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    monkeypatch.delenv(SET_BY, raising=False)
    return known


def test_a_base_weight_is_met_twice_an_update_six_times_and_attention_has_five_products(
    instructions: dict[str, bool],
) -> None:
    assert kept_kernels([STACK]) == SHAPES * 1_000_000
    assert kept_kernels([STACK, STACK]) == 2 * SHAPES * 1_000_000
    assert kept_kernels([replace(STACK, update=replace(STACK.update, modules=()))]) == (3 * 2 * 4 + 2 * 5) * 1_000_000
    instructions["amx_bf16"] = False
    assert kept_kernels([STACK]) == SHAPES * 600_000
    instructions.clear()
    assert kept_kernels([STACK]) == 0


def test_no_more_are_kept_than_onednn_is_told_to_keep(
    instructions: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = replace(STACK, lengths=300)
    assert kept_kernels([many]) == 1024 * 1_000_000
    monkeypatch.setenv(SET_BY, "128")
    assert kept_kernels([many]) == 128 * 1_000_000


@pytest.mark.slow
def test_rows_of_many_lengths_take_what_is_predicted(tmp_path: Path) -> None:
    """The kernels are 0.25 GB of 1.6 where the CPU has AMX."""
    words = ["order", "late", "answer", "letter", "money", "spring", "nobody", "text", "customer", "again"]
    texts = [" ".join((words * 24)[number % 10 :][: 4 + 11 * (7 * number % 20)]) for number in range(40)]
    rows = [[{"role": "user", "content": each}, {"role": "assistant", "content": "fine"}] for each in texts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    config = tmp_path / "c.yaml"
    config.write_text(
        "model: {name_or_path: builtin:smollm2-135m-instruct, dtype: bfloat16}\n"
        f"data: {{train: {tmp_path / 'rows.jsonl'}, eval: null}}\n"
        f"training: {{max_steps: 12, per_device_train_batch_size: 2, output_dir: {tmp_path / 'run'}}}\n"
    )

    def peak(verb: str) -> int:
        command = [
            sys.executable,
            "-m",
            "loraft",
            verb,
            str(config),
            "training.gradient_accumulation_steps=1",
            "--json",
        ]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return int((told["memory"] if verb == "check" else told)["peak_bytes"])

    assert peak("check") == pytest.approx(peak("train"), rel=0.15)
