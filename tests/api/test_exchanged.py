"""What `check` tells of strategies; `python -m tests.api.test_exchanged` makes the tables of docs/scaling.md anew."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loraft.api.exchanged import strategies
from loraft.config.schema import RunConfig
from loraft.distributed.ranks import ALONE, Ranks
from loraft.models.device import StatedDevice
from loraft.models.sources import ModelHandle
from loraft.planning.memory import MemoryPlan
from loraft.planning.run_plan import RunPlan, plan_run
from tests.inspection.test_layers import LLAMA_2_70B, config_alone
from tests.tiny import tiny_tokenizer
from tests.training.building import tiny_config, write_rows

PAGE = Path(__file__).resolve().parents[2] / "docs/scaling.md"
LLAMA_3_1_405B: dict[str, Any] = {
    **LLAMA_2_70B, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
    "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
MIXTRAL_8X7B: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
    "num_experts_per_tok": 2, "vocab_size": 32000, "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip


class Case(NamedTuple):
    """A model on GPUs."""

    shape: dict[str, Any]
    method: str
    tokens: int
    gpu: str
    gpus: int
    machines: int = 1
    strategy: str = "fsdp2"
    more: dict[str, Any] = {}  # noqa: RUF012
    memory: int | None = None

    @property
    def ranks(self) -> Ranks:
        return Ranks(0, self.gpus * self.machines, 0, self.gpus) if self.gpus * self.machines > 1 else ALONE


def planned(case: Case, folder: Path) -> RunPlan:
    """The plan of a model of which only config.json is there, on rows that are as long as they may be."""
    config_alone(folder / "model", case.shape)
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = write_rows(folder / "rows.jsonl", [{"text": "z" * case.tokens} for _ in range(16 * case.ranks.world)])
    config = RunConfig.model_validate({
        "method": case.method,
        "model": {"name_or_path": str(folder / "model"), "dtype": "bfloat16"},
        "data": {"train": str(rows), "eval": None, "max_length": case.tokens, "on_overlength": "truncate"},
        "lora": {"r": 8, "alpha": 16, "target_modules": case.more.get("targets", "all-linear")},
        "training": {
            "per_device_train_batch_size": 1, "optim": "adamw", "gradient_checkpointing": True,
            "gradient_accumulation_steps": 1, "output_dir": str(folder / "run"), "max_steps": 1,
        },
        "distributed": {"strategy": case.strategy, **case.more.get("distributed", {})},
    })  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        # There are no weights to be checked.
        patched.setattr(ModelHandle, "has_weights", False)
        return plan_run(config, StatedDevice("cuda", case.memory, case.gpu), ranks=case.ranks)


def test_each_strategy_is_told_with_what_it_needs_and_exchanges(tmp_path: Path) -> None:
    config, ranks = tiny_config(tmp_path, training__gradient_accumulation_steps=2), Ranks(0, 4, 0, 2)
    plan = plan_run(config, StatedDevice("cuda", 10**9), ranks=ranks)
    told = {each["strategy"]: each for each in strategies(plan, ranks)}
    assert list(told) == ["ddp", "fsdp2", "fsdp2 with hybrid_shard"]
    whole, parts, copies = told.values()
    assert parts["peak_bytes"] < min(copies["peak_bytes"], whole["peak_bytes"])
    assert whole["a_rank_gets_bytes"] == whole["a_machine_gets_bytes"] == 1.5 * 4 * plan.shape.trainable_parameters
    assert copies["a_machine_gets_bytes"] == 2 * 4 * plan.shape.trainable_parameters
    assert copies["a_machine_gets_bytes"] < parts["a_machine_gets_bytes"]
    assert "at_most_times" not in whole, "no rate is known"


def test_ranks_gain_at_most_as_many_times_as_they_are(tmp_path: Path) -> None:
    plan = plan_run(tiny_config(tmp_path, model__dtype="bfloat16"), StatedDevice("cuda", None, "H100 SXM"))
    for world in (2, 8):
        for each in strategies(plan, Ranks(0, world, 0, world)):
            assert 0 < each["at_least_times"] <= each["at_most_times"] <= world


def test_one_rank_has_no_strategy(tmp_path: Path) -> None:
    assert strategies(plan_run(tiny_config(tmp_path)), ALONE) == ()


CASES = {
    "Llama-2-70B on GPUs of 24 GB": {
        "QLoRA on one": Case(LLAMA_2_70B, "qlora", 512, "RTX 4090", 1),
        "QLoRA, fsdp2 on two": Case(LLAMA_2_70B, "qlora", 512, "RTX 4090", 2),
        "LoRA, fsdp2 on two": Case(LLAMA_2_70B, "lora", 512, "RTX 4090", 2),
        "LoRA, fsdp2 on eight": Case(LLAMA_2_70B, "lora", 512, "RTX 4090", 8),
    },
    "Llama-3.1-405B on GPUs of 80 GB": {
        "QLoRA, ddp on one": Case(LLAMA_3_1_405B, "qlora", 2048, "H100 SXM", 1),
        "QLoRA, fsdp2 on 1 × 8": Case(LLAMA_3_1_405B, "qlora", 2048, "H100 SXM", 8),
        "QLoRA, fsdp2 on 2 × 8": Case(LLAMA_3_1_405B, "qlora", 2048, "H100 SXM", 8, 2),
        "QLoRA, hybrid on 2 × 8": Case(
            LLAMA_3_1_405B, "qlora", 2048, "H100 SXM", 8, 2, more={"distributed": {"hybrid_shard": True}}
        ),
        "LoRA, fsdp2 on 2 × 8": Case(LLAMA_3_1_405B, "lora", 2048, "H100 SXM", 8, 2),
    },
    "Mixtral-8x7B on GPUs of 80 GB": {
        "LoRA of attention on one": Case(
            MIXTRAL_8X7B, "lora", 2048, "H100 SXM", 1, more={"targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
        ),
        "LoRA, fsdp2 on two": Case(MIXTRAL_8X7B, "lora", 2048, "H100 SXM", 2),
        "LoRA, fsdp2 on eight": Case(MIXTRAL_8X7B, "lora", 2048, "H100 SXM", 8),
    },
}
COLUMNS = (
    "", "weights", "trained, with its optimizer", "activations and logits", "peak a GPU", "fits", "a GPU gets a step",
    "a machine gets a step",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n|---|---:|---:|---:|---:|---|---:|---:|\n".replace("|  |", "| |")


def table(cases: dict[str, Case], folder: Path) -> str:
    """The rows of a table of the page."""
    return HEAD + "".join(row(name, case, folder / str(number)) for number, (name, case) in enumerate(cases.items()))


def row(name: str, case: Case, folder: Path) -> str:
    folder.mkdir()
    plan = planned(case, folder)
    memory: MemoryPlan = plan.memory
    gets = ["–", "–"]
    if case.ranks.world > 1:
        hybrid = case.more.get("distributed") is not None
        wanted = "fsdp2 with hybrid_shard" if hybrid else case.strategy
        told = next(each for each in strategies(plan, case.ranks) if each["strategy"] == wanted)
        gets = [gigabytes(told["a_rank_gets_bytes"]), gigabytes(told.get("a_machine_gets_bytes"))]
    parts = (
        memory.weights,
        memory.adapter + memory.gradients + memory.optimizer,
        memory.activations + memory.logits,
        memory.peak_bytes,
    )
    fits = "yes" if memory.peak_bytes <= plan.placement.available_bytes else "no"
    return f"| {name} | {' | '.join(map(gigabytes, parts))} | {fits} | {' | '.join(gets)} |\n"


def gigabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e9:.1f} GB"


def filled(page: str, folder: Path) -> str:
    """The page with its tables made anew: each stands below its heading."""
    for number, (heading, cases) in enumerate(CASES.items()):
        (folder / str(number)).mkdir()
        made = table(cases, folder / str(number))
        page, count = re.subn(rf"(## {re.escape(heading)}\n\n)(\|.*\n)+", lambda found: found[1] + made, page)  # noqa: B023
        assert count == 1, heading
    return page


@pytest.mark.slow
def test_the_tables_of_the_page_are_what_is_reckoned(tmp_path: Path) -> None:
    assert filled(PAGE.read_text("utf-8"), tmp_path) == PAGE.read_text("utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        PAGE.write_text(filled(PAGE.read_text("utf-8"), Path(place)), encoding="utf-8")
