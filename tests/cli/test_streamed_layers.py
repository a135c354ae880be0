"""Runs whose layers are fed, and whose checkpointed inputs are kept on the host: the same bytes as without.

A CPU takes itself for a device with memory of its own here: what is copied, and when, is then as on a GPU.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loraft import api
from loraft.config.schema import RunConfig
from loraft.config.sections import QuantizationSection
from loraft.errors import Interrupted
from loraft.kernels.layer_stream import LayerStream
from loraft.kernels.offloaded_inputs import KeptInputs
from loraft.kernels.transfer import pinned_bytes
from loraft.models.device import StatedDevice
from loraft.models.quantize import quantized_bytes
from loraft.planning.planned_memory import too_large
from loraft.planning.run_plan import plan_run
from tests.cli.conftest import Loraft, WriteConfig
from tests.tiny import save_tiny
from tests.training.building import MODEL_OF, ROWS_OF, tiny_config, tiny_fit, write_rows
from tests.training.test_trainer import stop_at
from tests.words import Wording

STEPS = {
    "training__max_steps": 2,
    "training__gradient_accumulation_steps": 2,
    "training__per_device_train_batch_size": 2,
}
DEPTH = 5
KEY = "model.stream_layers"
CHECKPOINTING = "training__gradient_checkpointing"


@pytest.fixture
def memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("planning.planned_memory", "planning.run_plan", "training.built_model"):
        monkeypatch.setattr(f"loraft.{module}.has_own_memory", lambda _: True)


def config_in(folder: Path, *, stream: bool = True, **options: Any) -> RunConfig:
    task = options.get("task", "causal_lm")
    if not (folder / "model").exists():
        depth = {"num_layers": DEPTH} if task == "seq2seq_lm" else {"num_hidden_layers": DEPTH}
        save_tiny(folder / "model", MODEL_OF[task], **depth)
        write_rows(folder / "train.jsonl", ROWS_OF[task]())
    model = {"name_or_path": str(folder / "model"), "dtype": "float32", "stream_layers": stream}
    name = f"run-{stream}-{options.get('training__gradient_checkpointing')}"
    return tiny_config(folder, model=model, training__output_dir=str(folder / name), **{**STEPS, **options})


def outcome(folder: Path) -> tuple[list[dict[str, Any]], bytes]:
    """What a run measured, and what it saved."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    named = [{key: each[key] for key in ("step", "loss", "grad_norm", "eval_loss") if key in each} for each in records]
    return named, (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("seq_cls", "lora"),
        *(pytest.param("seq2seq_lm", method, marks=pytest.mark.slow) for method in ("lora", "qlora")),
        *(pytest.param("causal_lm", method, marks=pytest.mark.slow) for method in ("lora", "qlora")),
        pytest.param("seq_cls", "qlora", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_the_same_to_the_byte(
    task: str, method: str, tmp_path: Path, memory_of_its_own: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"task": task, "method": method, "data__eval": 0.2}
    kept: list[int] = []
    plain = KeptInputs._keep
    monkeypatch.setattr(KeptInputs, "_keep", lambda self, states: (kept.append(1), plain(self, states))[1])
    resident = api.train(config_in(tmp_path, stream=False, training__gradient_checkpointing=True, **options))
    assert not kept
    fed = api.train(config_in(tmp_path, training__gradient_checkpointing="offload", **options))
    assert kept
    assert len(kept) % DEPTH == 0
    assert outcome(fed.run_folder) == outcome(resident.run_folder)


@pytest.mark.slow
def test_a_run_goes_on_with_the_key_on_or_off(tmp_path: Path, memory_of_its_own: None) -> None:
    whole = api.train(config_in(tmp_path, stream=False, training__save_steps=1))
    begun = config_in(tmp_path, training__save_steps=1)
    with pytest.raises(Interrupted):
        api.train(begun, observer=stop_at(1))
    on = begun.model_copy(update={"model": begun.model.model_copy(update={"stream_layers": False})})
    resumed = api.train(on, resume=True)
    assert outcome(resumed.run_folder) == outcome(whole.run_folder)


def test_frozen_layers_below_are_fed_too_and_what_stays_is_on_the_device(
    tmp_path: Path, memory_of_its_own: None
) -> None:
    run, _ = tiny_fit(config_in(tmp_path, task="seq_cls", lora__layers="last:2", lora__bias="all"))
    assert isinstance(run.adapted.loaded.stream, LayerStream)
    assert not run.plan.shape.ends, "a classifier's head is trained"
    assert len(run.adapted.loaded.stream.layers) == DEPTH
    memory = run.plan.memory
    assert memory.host_weights == pytest.approx(run.adapted.loaded.stream.host_bytes, rel=0.02)
    assert memory.host_bytes == memory.host_weights
    biases = [weight for name, weight in run.adapted.trainable.items() if name.endswith(".bias")]
    assert len({id(bias.untyped_storage()) for bias in biases}) == len(biases), "what is trained is nobody's view"


def test_a_gpu_of_less_memory_is_planned_for(tmp_path: Path) -> None:
    """On it are two layers, and the embeddings or the head; offload leaves the inputs of two of its five layers."""
    there = StatedDevice("cuda", 10**9)
    options: dict[str, Any] = {"method": "qlora", "data__max_length": 32}
    plans = {
        (stream, kept): plan_run(config_in(tmp_path, stream=stream, **{CHECKPOINTING: kept}, **options), there)
        for stream in (False, True)
        for kept in (True, "offload")
    }
    resident, fed = plans[False, True].memory, plans[True, True].memory
    shape = plans[True, True].shape
    layer = quantized_bytes(shape.quantized_parameters // DEPTH, 0, QuantizationSection())
    end, head = (4 * numbers for numbers in shape.ends)
    assert end == head
    assert resident.weights - fed.weights == (DEPTH - 2) * layer + end
    assert fed.host_weights == DEPTH * pinned_bytes(layer) + 2 * pinned_bytes(end)
    assert resident.activations == fed.activations
    kept = plans[True, "offload"].memory
    assert kept.host_inputs == DEPTH * pinned_bytes((fed.activations - kept.activations) // (DEPTH - 2))
    assert "host_weights" in fed.as_dict()
    assert "host_weights" not in resident.as_dict()
    assert fed.peak_bytes == sum(size for part, size in fed.as_dict().items() if "host" not in part) // 2


def test_on_a_cpu_both_keys_say_that_they_change_nothing(tmp_path: Path, wording: Wording) -> None:
    plan = plan_run(config_in(tmp_path, training__gradient_checkpointing="offload"))
    assert plan.config.training.gradient_checkpointing is True
    assert plan.memory.host_bytes == 0
    said = [note for note in plan.notes if "on a CPU" in note]
    assert len(said) == 2
    wording("\n".join(said))


REFUSED = (
    ("method=full",),
    ("lora.use_dora=true",),
    ("lora.init=pissa",),
    ("method=qlora", "quantization.type=int8"),
    ("training.cache_frozen_prefix=true", "data.shuffle=batches"),
    ("lora.modules_to_save=[q_proj]", "lora.target_modules=[v_proj]"),
)


@pytest.mark.slow
def test_embeddings_and_head_are_fed_unless_they_are_trained(tmp_path: Path, memory_of_its_own: None) -> None:
    run, _ = tiny_fit(config_in(tmp_path))
    model = run.adapted.loaded.model
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embeddings.untyped_storage().data_ptr() == head.untyped_storage().data_ptr()
    trained = plan_run(config_in(tmp_path, lora__modules_to_save=["lm_head"]))
    assert not trained.shape.ends
    assert api.train(config_in(tmp_path, lora__modules_to_save=["lm_head"], training__max_steps=1)).loss


@pytest.mark.parametrize("options", REFUSED, ids=lambda options: options[0])
def test_what_is_not_frozen_or_read_whole_is_refused(
    options: tuple[str, ...], loraft: Loraft, config: WriteConfig, wording: Wording
) -> None:
    result = loraft("check", str(config()), f"{KEY}=true", *options)
    assert result.exit_code == 2
    assert KEY in result.stderr
    wording(result.stderr)


def test_check_tells_what_is_kept_in_main_memory_beside_the_peak(loraft: Loraft, config: WriteConfig) -> None:
    asked = (f"{KEY}=true", "training.gradient_checkpointing=offload", "--device", "cuda", "--gpu-memory", "4GB")
    memory = json.loads(loraft("check", str(config()), *asked, "--json").stdout)["memory"]
    parts = list(memory)
    assert parts[parts.index("peak_bytes") + 1 :] == ["host_weights", "host_inputs", "available_bytes"]
    assert memory["peak_bytes"] == sum(memory[part] for part in parts[: parts.index("peak_bytes")])
    shown = loraft("check", str(config()), *asked).stdout
    assert not any("━" in line for line in shown.splitlines() if line.strip().startswith("host"))


def test_main_memory_that_does_not_suffice_is_told(tmp_path: Path, memory_of_its_own: None) -> None:
    plan = plan_run(config_in(tmp_path))
    assert too_large(plan, plan.memory) is None
    more = replace(plan.memory, host_weights=10**15)
    assert "main memory" in (too_large(plan, more) or "")
