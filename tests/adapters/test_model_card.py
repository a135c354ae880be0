"""Model cards whose names and labels are hostile: the page says them, and nothing of them becomes a part of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraft.adapters.model_card import cell, code, model_card, prose, shown_word, without_paths
from loraft.config.schema import RunConfig
from loraft.merging.merge_report import MergeReport, merged_card
from tests.adapters.setting import FACTS, run_config

HOSTILE = [
    "two\nlines",
    "a | b",
    "`rm`",
    "```\nfence",
    "<script>alert(1)</script>",
    "---\nlicense: mit\n---",
    'x"\nlicense: "mit',
    "# a title",
    "[here](http://evil)",
    "next\u2028line\x85\x1b[2J",
    "\udcff no text",
    "ünïcode 🙂",
    " ",
]
HEADINGS = ["# ", "## Use", "## Training", "## Measured"]


def header_and_body(card: str) -> tuple[Any, str]:
    """The YAML header of a card as a program reads it, and the rest."""
    card.encode("utf-8")
    assert all(mark not in card for mark in "\x1b\x85\u2028")
    empty, header, body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    assert empty == ""
    return yaml.safe_load(header), body


def without_code(body: str) -> str:
    """What of Markdown is no code: blocks and spans are taken out, as CommonMark finds them."""
    body = re.sub(r"^```python$.*?^```$", "", body, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "CODE", body)


def is_whole(body: str) -> None:
    rest = without_code(body)
    headings = [line for line in rest.splitlines() if line.startswith("#")]
    assert [line[: len(start)] for line, start in zip(headings, HEADINGS, strict=True)] == HEADINGS
    for sign in ("<script>", "](http", "`", "license:"):
        assert sign not in rest
    for line in rest.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3, line


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", HOSTILE)
def test_the_card_of_hostile_names_is_whole(name: str, method: str) -> None:
    name = name.replace("\udcff", "?")  # which no config holds
    config = run_config(method, model=f"org/{name}", target_modules=["q_proj", "v|`proj"])
    data = config.data.model_copy(
        update={"train": (config.data.train[0].model_copy(update={"path": f"{name}.jsonl"}),)}
    )
    config = config.model_copy(update={"data": data, "task": "seq_cls"})
    header, body = header_and_body(model_card(config, FACTS, "1", labels=[name, "fine"]))
    assert set(header) == {"base_model", "library_name", "pipeline_tag", "tags"}
    assert header["base_model"].startswith("org/")
    is_whole(body)
    (block,) = re.findall(r"^```python$(.*?)^```$", body, flags=re.MULTILINE | re.DOTALL)
    assert ast.parse(block).body, "the code of the card is Python"
    assert re.search(r"Its 2 classes, in the order of their scores: .*, `fine`\.$", body, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("layers", "shown"),
    [
        ("last:2", "last:2"),
        ([0, 5], "0, 5"),
        ({"encoder": "last:1", "decoder": [0, 5]}, "encoder last:1; decoder 0, 5"),
    ],
)
def test_the_card_says_which_layers_are_adapted(layers: Any, shown: str) -> None:
    assert f"| layers | {shown} |" in model_card(run_config(layers=layers), FACTS, "1")


def report(**changed: Any) -> MergeReport:
    facts: dict[str, Any] = {
        "out": Path("out"), "base": "original", "dtype": "float32", "max_abs_logit_difference": 0.1,
        "kl_adapted_merged": 0.1, "kl_adapted_base": 0.1, "top1_agreement": 1.0, "positions": 256,
        "measured_on": "the run's held-out rows", "compared": "logits", "base_model": "org/base",
        "architecture": "LlamaForCausalLM", "why_this_base": "so", "adapters": ({"name": "a", "weight": 1.0},),
        "changed_tensors": 1, "untied": (), "weights_bytes": 1, "merge_seconds": 1.0, "verified": True, "warnings": (),
        "labels": (),
    }  # fmt: skip
    return MergeReport(**facts | changed)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_card_of_a_merge_of_hostile_names_is_whole(name: str) -> None:
    made = report(
        base_model=f"org/{name}",
        adapters=({"name": name, "weight": 1.0},),
        labels=(name, "fine"),
        warnings=(f"/home/me/{name}: cannot be read",),
    )
    header, body = header_and_body(merged_card(made, "1"))
    assert set(header) == {"base_model", "library_name", "tags"}
    rest = without_code(body)
    assert [line.split(" ")[0] for line in rest.splitlines() if line.startswith("#")] == ["#", "##", "##"]
    assert "<script>" not in rest
    assert "/home" not in body
    assert "/home" not in str(made.as_dict())


def test_text_is_shown_as_it_is() -> None:
    assert [code(text) for text in ("a", "`a", "a``b", "")] == ["`a`", "`` `a ``", "```a``b```", "`  `"]
    assert cell(code("a|b")) == "`a\\|b`"
    assert prose("a <b> *c*\n# d") == "a \\<b\\> \\*c\\* \\# d"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/a/b/config.yaml", "config.yaml"),
        ("model.name_or_path=/a/b c/base", "model.name_or_path=base"),
        ("--adapter=one=/a/b=0.5", "--adapter=one=b=0.5"),
        ("data.train=[/a/b.jsonl,~/c.jsonl]", "data.train=[b.jsonl,c.jsonl]"),
        ("data.train={path: \"/a/b.jsonl\"}", 'data.train={path: "b.jsonl"}'),
        ("data.train=https://host/rows.jsonl", "data.train=https://host/rows.jsonl"),
        ("model.name_or_path=org/name", "model.name_or_path=org/name"),
        ("../up/c.yaml", "../up/c.yaml"),
        ("training.sample_prompts=[yes/no?]", "training.sample_prompts=[yes/no?]"),
    ],
)  # fmt: skip
def test_no_word_of_a_command_shows_an_absolute_path(word: str, shown: str) -> None:
    assert shown_word(word) == shown


def test_no_sentence_shows_an_absolute_path() -> None:
    said = "the rows cannot be read: /home/me/rows.jsonl: there is no such file (or /tmp/x). 3/4 of a/b stay"
    assert without_paths(said) == "the rows cannot be read: rows.jsonl: there is no such file (or x). 3/4 of a/b stay"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_the_card_imports_is_there(method: str) -> None:
    base = {"name_or_path": "builtin:smollm2-135m-instruct"}
    config = RunConfig.model_validate({"method": method, "model": base, "data": {"train": "rows.jsonl"}})
    (code_block,) = re.findall(r"```python\n(.*?)```", model_card(config, FACTS, "1"), flags=re.S)
    imports = [line for line in code_block.splitlines() if line.startswith("from ")]
    assert len(imports) == (3 if method == "lora" else 1)
    exec("\n".join(imports), {})


def test_the_card_says_what_else_was_done_in_training_where_it_was() -> None:
    plain = model_card(run_config(), FACTS, "1")
    assert not any(word in plain for word in ("smoothing", "NEFTune", "LoRA+"))
    config = run_config()
    training = config.training.model_copy(update={"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0})
    lora = config.lora.model_copy(update={"plus_ratio": 16.0})
    card = model_card(config.model_copy(update={"training": training, "lora": lora}), FACTS, "1")
    assert "| label smoothing | 0.1 |" in card
    assert "| noise on embeddings | NEFTune, alpha 5 |" in card
    assert "LoRA+ (B at 16 times the rate)" in card
