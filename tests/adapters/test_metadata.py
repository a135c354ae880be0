"""What a folder of weights says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.adapters.metadata import ResolvedTarget, adapter_in, model_in
from loraft.config.sections import QuantizationSection
from loraft.errors import AdapterError
from loraft.tasks.training_metadata import SourceFormat, TrainingMetadata


def write(folder: Path, record: dict[str, object] | None = None, **config: object) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", **config}))
    if record is not None:
        (folder / "loraft.json").write_text(json.dumps(record))
    return folder


def test_an_adapter_of_another_tool_says_what_peft_writes(tmp_path: Path) -> None:
    found = adapter_in(write(tmp_path, revision="v1", task_type="SEQ_2_SEQ_LM"))
    assert (found.base, found.revision, found.adapter, found.metadata.task) == (
        "org/base",
        "v1",
        tmp_path,
        "seq2seq_lm",
    )
    assert found.adapters[0].fingerprint is None
    assert found.metadata.sources == SourceFormat()


def test_what_loraft_recorded_beside_the_weights_is_known(tmp_path: Path) -> None:
    record = {
        "task": "seq_cls", "labels": ["no", "yes"], "plain": True, "system_prompt": "Be brief.",
        "source_lang": "de", "base": {"fingerprint": "sha256:1", "dtype": "float32"},
    }  # fmt: skip
    found = adapter_in(write(tmp_path, record))
    adapter = found.adapters[0]
    assert found.metadata == TrainingMetadata(
        "seq_cls", "Be brief.", plain=True, sources=SourceFormat(source_lang="de"), labels=("no", "yes")
    )
    assert (adapter.fingerprint, adapter.dtype) == ("sha256:1", "float32")
    assert model_in(tmp_path) == ResolvedTarget(str(tmp_path), own=found.metadata)


@pytest.mark.parametrize("odd", [3, None, [], {"a": 1}])
def test_a_record_of_odd_values_is_as_none(tmp_path: Path, odd: object) -> None:
    record = {"task": odd, "labels": "ab", "plain": odd, "system_prompt": odd, "source_prefix": odd, "base": odd}
    found = adapter_in(write(tmp_path, record, revision=odd))
    assert found == adapter_in(write(tmp_path, {}))


def test_the_base_is_stored_as_it_was_in_training(tmp_path: Path) -> None:
    stored = {"type": "fp4", "double_quant": False, "compute_dtype": "bfloat16"}
    expected = QuantizationSection(type="fp4", double_quant=False, experts=False, compute_dtype="bfloat16")
    assert adapter_in(write(tmp_path, {"quantization": stored})).quantization == expected
    with pytest.raises(AdapterError, match=r"loraft\.json"):
        adapter_in(write(tmp_path, {"quantization": {"type": "int3"}}))


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", "float32"), ("bfloat16", "auto"), ("float16", "auto"), (3, "auto")]
)
def test_what_was_trained_in_float32_runs_in_it(tmp_path: Path, dtype: object, expected: str) -> None:
    assert adapter_in(write(tmp_path, {"base": {"dtype": dtype}})).model.section.dtype == expected
