"""Writes docs/models.md of what the tables of the zoo say: `python -m tests.zoo.models_page`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from loraft.models.registry import FAMILIES
from tests.zoo.cells import CELLS
from tests.zoo.models import GROUPS
from tests.zoo.not_alone import NOT_ALONE, NOT_READ_BACK, trained_alone
from tests.zoo.not_yet import NOT_YET, PLAIN

PAGE = Path(__file__).parents[2] / "docs/models.md"
TITLES: Mapping[str, str] = {
    "causal": "Causal language models",
    "seq2seq": "Encoder–decoders",
    "classification": "Classifiers",
    "multimodal": "Multimodal models: the language part",
}
WHAT: Mapping[str, str] = {
    "causal": "What `AutoModelForCausalLM` makes; trained with `task: causal_lm`.",
    "seq2seq": "What `AutoModelForSeq2SeqLM` makes; trained with `task: seq2seq_lm`, and those without an encoder of "
    "text with `task: causal_lm`.",
    "classification": "What `AutoModelForSequenceClassification` makes; trained with `task: seq_cls`.",
    "multimodal": "What `AutoModelForImageTextToText` makes and stands in no table above; trained on text with "
    "`task: causal_lm`, the towers frozen.",
}
CELL: Mapping[str, str] = {
    "check": "`loraft check` plans the run before a weight is loaded",
    "loss": "the first loss of `loraft train` is that of transformers on the rows one by one, to 1e-5 in float32",
    "adapter": "after three steps every `lora_B` has learned",
    "resume": "a run that was stopped and resumed ends with the same bytes",
    "peft": "peft alone loads the adapter and gives the logits that loraft gives",
    "generate": "`loraft generate` writes the tokens of transformers' `generate`, greedy",
    "merge": "the merged model, loaded by transformers alone, gives the logits of the adapted one, to 1e-4 of "
    "the largest, or of 1",
}
"""What each cell of the table is."""


def page() -> str:
    """The page, whole."""
    trained = [
        (group, name) for group, each in GROUPS.items() for name in each.model_types if trained_alone(group, name)
    ]
    whole = [each for each in trained if each not in NOT_YET]
    head = [
        "# Models",
        "",
        "A model is trained if transformers can load it. Of "
        f"{sum(len(each.model_types) for each in GROUPS.values())} entries in the mappings of transformers "
        f"{version('transformers')} (causal, sequence to sequence, sequence classification, image and text to text) "
        f"transformers and peft {version('peft')} train {len(trained)} on text; loraft does everything below with "
        f"{len(whole)} of them. Each is tried as a tiny random model (`tests/zoo/`):",
        "",
        *(f"- **{cell}**: {CELL[cell]}" for cell in CELLS),
        "",
        "The path says how a loss is computed. **table**: the architecture is in the table of loraft and is tested by "
        "name. **probed**: its structure was looked at and tried on a tiny copy before the run; its loss is computed "
        "from the hidden states where there is a label. **plain**: what no experiment established is left to the "
        "model: its own logits, rows padded and masked; slower, never wrong, and `loraft check` says so.",
        "",
        "`python -m tests.zoo.models_page` writes this page.",
    ]
    return "\n".join([*head, *(line for group in GROUPS for line in _table(group))]) + "\n"


def _table(group: str) -> Iterator[str]:
    yield from (
        "",
        f"## {TITLES[group]}",
        "",
        WHAT[group],
        "",
        "| `model_type` | path | what does not work, and why |",
        "|---|---|---|",
    )
    for name in sorted(GROUPS[group].model_types):
        yield f"| `{name}` | {path(group, name)} | {_why(group, name)} |"


def path(group: str, model_type: str) -> str:
    """How a type's loss is computed."""
    if not _is_trained(group, model_type) or "check" in NOT_YET.get((group, model_type), {}):
        return "–"
    return "plain" if (group, model_type) in PLAIN else "table" if model_type in FAMILIES else "probed"


def _is_trained(group: str, model_type: str) -> bool:
    return trained_alone(group, model_type) or NOT_READ_BACK in NOT_ALONE[group, model_type]


def _why(group: str, model_type: str) -> str:
    if not _is_trained(group, model_type):
        return f"not trained by transformers and peft either: {NOT_ALONE[group, model_type][1]}"
    reasons = [f"{cell}: {why}" for cell, why in NOT_YET.get((group, model_type), {}).items()]
    if (group, model_type) in NOT_ALONE:
        reasons.append("{}, in the libraries themselves: {}".format(*NOT_ALONE[group, model_type]))
    return "; ".join(reasons)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
