"""What the tests of classifiers start from: labelled rows of uneven lengths, and a config over a tiny base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loraft.config.schema import RunConfig
from loraft.models.registry import CLASSIFIERS
from tests.tiny import save_tiny
from tests.training.building import WORDS, tiny_config, write_rows

ENCODERS = tuple(name for name, family in CLASSIFIERS.items() if not family.generates)
SOME = ("bert", "distilbert", "roberta", "deberta-v2", "llama", "gpt2")
"""One of each shape of head."""
LABELS = ("late", "fine", "other")


def labelled_rows(count: int = 12, *, pairs: bool = False) -> list[dict[str, Any]]:
    """Texts of uneven lengths, of three classes that do not stand equally often."""
    return [
        {
            "text": " ".join(WORDS[number % 5 : number % 5 + 1 + (5 * number) % 11]),
            **({"text_pair": " ".join(WORDS[: 1 + number % 4])} if pairs else {}),
            "label": LABELS[(0, 1, 0, 2, 0)[number % 5]],
        }
        for number in range(count)
    ]


def classifier_config(folder: Path, model_type: str = "bert", **overrides: Any) -> RunConfig:
    """A config over a tiny base and labelled rows in `folder`; overrides as `tiny_config` takes them."""
    if not (folder / "model").exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_tiny(folder / "model", model_type)
        write_rows(folder / "train.jsonl", labelled_rows())
    return tiny_config(folder, **{"task": "seq_cls", "data__max_length": 64, **overrides})
