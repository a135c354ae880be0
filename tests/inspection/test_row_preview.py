"""What is shown of rows is what training reads: the same tokens, labels and batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraft.config.schema import RunConfig
from loraft.errors import InvalidInputError
from loraft.inspection.row_preview import SeenRow, preview
from loraft.planning.run_plan import plan_run
from tests.tiny import save_tiny
from tests.training.building import tiny_config, write_rows


def config_of(folder: Path, model_type: str, rows: list[dict[str, Any]], task: str, **data: Any) -> RunConfig:
    if not (folder / model_type).exists():
        save_tiny(folder / model_type, model_type)
    path = write_rows(folder / "rows.jsonl", rows)
    section = {"train": str(path), "eval": None, "max_length": 64} | data
    values = {"task": task, "model": {"name_or_path": str(folder / model_type)}, "data": section}
    return RunConfig.model_validate(values)


def text_of(row: SeenRow, part: int = 0, *, trained: bool = False) -> str:
    return "".join(token.text for token in row.parts[part].tokens if token.trained or not trained)


def test_the_tokens_and_what_is_learned_are_those_of_training(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    plan, seen = plan_run(config), preview(config, count=3)
    for example, row in zip(plan.data.train[:3], seen.rows, strict=True):
        (part,) = row.parts
        assert [token.id for token in part.tokens] == example.input_ids
        assert [token.id for token in part.tokens if token.trained] == [i for i in example.labels if i != -100]
        assert (row.where, row.tokens, row.trained) == (example.where, example.tokens, example.trained)
    assert text_of(seen.rows[1]) == (
        "<|im_start|>user\nthe order<|im_end|>\n<|im_start|>assistant\norder is late and<|im_end|>\n"
    )
    assert text_of(seen.rows[1], trained=True) == "order is late and<|im_end|>"
    marks = {token.text for token in seen.rows[1].parts[0].tokens if token.special}
    assert marks == {"<|im_start|>", "<|im_end|>"}
    assert {(token.text, token.roles) for token in seen.special_tokens} == {
        ("<|im_end|>", ("eos_token",)),
        ("<|im_start|>", ()),
    }


@pytest.mark.parametrize("data", [{}, {"packing": "off"}, {"packing": "fill"}])
def test_c11_batches_are_those_of_training(tmp_path: Path, data: dict[str, str]) -> None:
    """What stands in one batch here is what one forward pass reads there; rows end where they end (C11)."""
    config = tiny_config(tmp_path, **{f"data__{key}": value for key, value in data.items()})
    plan, seen = plan_run(config), preview(config)
    epoch = plan.batches.epoch(0)
    assert seen.batches_an_epoch == len(epoch)
    assert seen.end_to_end is plan.layout.packed
    for chosen, batch in zip(epoch, seen.batches, strict=False):
        assert [row.where for row in batch.rows] == [plan.data.train[i].where for i in chosen]
        lengths = [len(plan.data.train[i].input_ids) for i in chosen]
        assert [row.tokens for row in batch.rows] == lengths
        width = sum(lengths) if plan.layout.packed else max(lengths)
        assert batch.shape == (1 if plan.layout.packed else len(lengths), width)
        assert batch.padding == batch.shape[0] * width - sum(lengths)
        assert batch.trained == sum(plan.data.train[i].trained for i in chosen)


def test_the_first_batches_of_a_stream_are_those_of_training(tmp_path: Path) -> None:
    streamed = {"data__streaming": True, "data__shuffle_buffer": 5, "data__eval": None}
    sizes = {"training__per_device_train_batch_size": 2, "training__gradient_accumulation_steps": 3}
    config = tiny_config(tmp_path, **streamed, **sizes)
    seen, plan = preview(config), plan_run(config)
    window = next(plan.batches.windows([], 0, 0, (0, 0)))
    drawn = [[example.where for example in batch] for batch in window.batches]
    assert [[row.where for row in batch.rows] for batch in seen.batches] == drawn[:2]
    assert seen.batches_an_epoch is None
    with pytest.raises(InvalidInputError, match=r"no row is at '999' among the first \d+ rows, all that are looked at"):
        preview(config, places=["999"])


def test_a_pair_is_what_the_encoder_reads_and_what_the_decoder_learns(tmp_path: Path) -> None:
    rows = [{"translation": {"en": f"the order {n}", "fr": "la fin" * (n + 1)}} for n in range(3)]
    config = config_of(
        tmp_path, "t5", rows, "seq2seq_lm", source_prefix="say: ", source_lang="en", target_lang="fr"
    )  # fmt: skip
    seen = preview(config)
    source, target = seen.rows[2].parts
    assert (source.name, target.name) == ("source", "target")
    assert text_of(seen.rows[2]) == "say: the order 2"
    assert text_of(seen.rows[2], 1) == "la finla finla fin<|im_end|>"
    assert not any(token.trained for token in source.tokens)
    assert all(token.trained for token in target.tokens)
    assert seen.rows[2].trained == len(target.tokens)
    assert not seen.end_to_end
    (batch,) = seen.batches
    assert batch.target_shape == (3, len(target.tokens))
    assert batch.trained == seen.trained


def test_a_labelled_text_has_its_class_and_its_texts_apart(tmp_path: Path) -> None:
    rows = [{"text": "late", "text_pair": "order", "label": name} for name in ("so-so", "bad", "good", "bad")]
    config = config_of(tmp_path, "bert", rows, "seq_cls")
    tokenizer = json.loads((tmp_path / "bert/tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    (tmp_path / "bert/tokenizer.json").write_text(json.dumps(tokenizer))
    settings = tmp_path / "bert/tokenizer_config.json"
    kept = json.loads(settings.read_text()) | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    settings.write_text(json.dumps(kept))
    seen = preview(config)
    assert seen.classes == ("bad", "good", "so-so")
    assert [(row.label, row.class_number) for row in seen.rows] == [("so-so", 2), ("bad", 0), ("good", 1), ("bad", 0)]
    tokens = seen.rows[0].parts[0].tokens
    assert "".join(token.text for token in tokens if token.segment == 0) == "late"
    assert "".join(token.text for token in tokens if token.segment == 1) == "order"
    assert not any(token.trained for token in tokens)


def test_a_row_is_found_by_line_or_place_and_what_is_left_out_says_why(tmp_path: Path) -> None:
    rows = [{"text": "the order " * (1 + 30 * (n == 2))} for n in range(8)]
    config = config_of(tmp_path, "llama", rows, "causal_lm", eval=0.25, on_overlength="drop")
    path = config.data.train[0].path
    whole = preview(config, count=100)
    held_out = preview(config, split="eval").rows[0].where
    assert whole.rows_in_split == 5
    (by_line,), (by_place,) = (preview(config, places=[where]).rows for where in ("1", f"{path}:1"))
    assert by_line == by_place
    assert by_line.where == f"{path}:1"
    (dropped,) = preview(config, places=["3"]).rows
    assert dropped.left_out is not None
    assert "more than data.max_length 64, and is dropped" in dropped.left_out
    assert dropped.tokens > 64
    (other,) = preview(config, places=[held_out]).rows
    assert other.left_out == "is held out for evaluation (data.eval)"
    (trained,) = preview(config, places=[whole.rows[0].where], split="eval").rows
    assert trained.left_out == "is trained on, not evaluated (data.eval)"
    with pytest.raises(InvalidInputError, match="no row is at '99'"):
        preview(config, places=["99"])


def test_pieces_of_a_split_row_are_numbered(tmp_path: Path) -> None:
    config = config_of(tmp_path, "llama", [{"text": "the order is late " * 20}, {"text": "late"}], "causal_lm")
    seen = preview(config, count=10)
    pieces = [row.piece for row in seen.rows]
    assert pieces[-1] is None
    assert pieces[:-1] == [(n + 1, len(pieces) - 1) for n in range(len(pieces) - 1)]
    assert [row.piece for row in preview(config, places=["1"]).rows] == pieces[:-1]


def test_no_weight_is_read(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    (tmp_path / "model/model.safetensors").unlink()
    assert preview(config).rows


def test_nothing_is_evaluated(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"data\.eval.*nothing is evaluated"):
        preview(tiny_config(tmp_path), split="eval")
