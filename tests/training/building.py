"""A tiny run for tests of the loop: a real config, a real model folder, real rows, in a fraction of a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from loraft.config.schema import RunConfig
from loraft.distributed.sharding import plain
from loraft.events import Event
from loraft.planning.run_plan import plan_run
from loraft.training.built_model import build_model
from loraft.training.checkpoint import RunState
from loraft.training.run_dir import RunFolder
from loraft.training.train_step import Trainer
from tests.tiny import save_tiny

WORDS = ("the order is late and the answer is in the text that the customer said about it again").split()  # noqa: SIM905


def rows(count: int = 12) -> list[dict[str, Any]]:
    """Conversations of uneven lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": " ".join(WORDS[: 1 + number % 5])},
                {"role": "assistant", "content": " ".join(WORDS[number % 7 : number % 7 + 1 + 3 * (number % 4)])},
            ]
        }
        for number in range(count)
    ]


def pairs(count: int = 12) -> list[dict[str, Any]]:
    """Sources and targets of uneven lengths."""
    return [
        {
            "source": " ".join(WORDS[: 1 + number % 6]),
            "target": " ".join(WORDS[number % 7 : number % 7 + 1 + 2 * (number % 5)]),
        }
        for number in range(count)
    ]


def labelled(count: int = 12) -> list[dict[str, Any]]:
    """Texts of uneven lengths, of three classes of uneven sizes."""
    return [
        {
            "text": " ".join(WORDS[number % 5 : number % 5 + 1 + number % 7]),
            "label": ("late", "text", "late", "order")[number % 4],
        }
        for number in range(count)
    ]


def preferred(count: int = 12) -> list[dict[str, Any]]:
    """Prompts with a better and a worse answer, of uneven lengths."""
    return [
        {
            "prompt": [{"role": "user", "content": " ".join(WORDS[: 1 + number % 5])}],
            "chosen": [{"role": "assistant", "content": " ".join(WORDS[number % 7 : number % 7 + 1 + number % 4])}],
            "rejected": [{"role": "assistant", "content": " ".join(WORDS[number % 3 : number % 3 + 2 + number % 6])}],
        }
        for number in range(count)
    ]


def judged(count: int = 12) -> list[dict[str, Any]]:
    """The answers of `preferred` by themselves, each with a label that calls it good or bad."""
    return [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for number, row in enumerate(preferred(count))
        for name in (("chosen",), ("rejected",), ("chosen", "rejected"))[number % 3]
    ]


ROWS_OF = {
    "causal_lm": rows, "preference": preferred, "seq2seq_lm": pairs, "seq2seq_preference": preferred,
    "seq_cls": labelled,
}  # fmt: skip
"""Rows for each task."""
MODEL_OF = {
    "causal_lm": "llama", "preference": "llama", "seq2seq_lm": "t5", "seq2seq_preference": "t5", "seq_cls": "bert",
}  # fmt: skip
"""A family for each task."""


def contrary() -> list[dict[str, Any]]:
    """Answers that training on `rows` makes less likely."""
    return [{"messages": [{"role": "user", "content": "the order"}, {"role": "assistant", "content": "zzq xxv 99"}]}]


def write_rows(path: Path, given: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as a .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


def tiny_config(folder: Path, **overrides: Any) -> RunConfig:
    """A config over a tiny model and a few rows in `folder`; overrides are dotted keys with `__` for the dot."""
    task = overrides.get("task", "causal_lm")
    model_type = overrides.pop("model_type", MODEL_OF[task])
    if not (folder / "model").exists():
        save_tiny(folder / "model", model_type)
        write_rows(folder / "train.jsonl", ROWS_OF[task]())
    values: dict[str, Any] = {
        "model": {"name_or_path": str(folder / "model"), "dtype": "float32"},
        "lora": {"r": 4, "alpha": 8},
        "data": {"train": str(folder / "train.jsonl"), "eval": None, "max_length": 256},
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "logging_steps": 1,
        },
    }
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return RunConfig.model_validate(values)


def tiny_fit(config: RunConfig, observer: Callable[[Event], None] = lambda _: None) -> tuple[Trainer, RunState]:
    """The loop's inputs for a config, with nothing in the run's folder yet."""
    plan = plan_run(config)
    adapted = build_model(plan)
    assert config.training.output_dir is not None
    folder = RunFolder(Path(config.training.output_dir))
    folder.path.mkdir(parents=True, exist_ok=True)
    return Trainer(plan, folder, adapted, lambda prompt: prompt, observer, []), RunState()


class Recorder(torch.optim.SGD):
    """An optimizer that changes nothing and keeps the gradients of each step."""

    def __init__(self, fit: Trainer) -> None:
        super().__init__(list(fit.adapted.trainable.values()), lr=0.0)
        self.names = list(fit.adapted.trainable)
        self.steps: list[dict[str, torch.Tensor]] = []

    def step(self, closure: Any = None) -> None:
        """Keep the gradients."""
        gradients = (p.grad for group in self.param_groups for p in group["params"])
        kept = {n: plain(g.detach()).clone() for n, g in zip(self.names, gradients, strict=True) if g is not None}
        self.steps.append(kept)


def without_dropout(module: torch.nn.Module) -> None:
    """Families keep dropout as modules or as numbers; some leave out whole layers."""
    names = ("p", "dropout", "attention_dropout", "activation_dropout", "residual_dropout", "attn_dropout", "layerdrop")
    for part in module.modules():
        for name in names:
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def recorded(
    config: RunConfig, *, prepare: Callable[[Trainer], None] = lambda _: None
) -> list[dict[str, torch.Tensor]]:
    """The gradients of each step of a run, nothing being learned; B is drawn so that every gradient is there."""
    from loraft.training.loop import fit

    run, state = tiny_fit(config)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in run.adapted.trainable.items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    without_dropout(run.adapted.loaded.model)
    run.optimizer = recorder = Recorder(run)
    prepare(run)
    fit(run, state)
    return recorder.steps


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    """Equal relative to the largest gradient of each parameter.

    A key's bias moves every score of a query alike, and softmax does not see it: its gradient is zero but for rounding,
    a millionth of the largest gradient there is, and must be no more in both.
    """
    assert ours.keys() == theirs.keys()
    rounding = 1e-6 * max(gradient.abs().max().item() for gradient in theirs.values())
    for name, gradient in ours.items():
        scale = theirs[name].abs().max().item()
        allowed = rounding if name.endswith(("key.bias", "k_proj.bias")) else tolerance * scale
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=allowed, msg=name)
