"""A tiny run for tests of the loop: a real config, a real model folder, real rows, in a fraction of a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from loraft.config.schema import RunConfig
from loraft.training.events import Event
from loraft.training.loop import Fit, RunState
from loraft.training.plan import plan_run
from loraft.training.run import fit_of, prepared_model
from loraft.training.run_folder import RunFolder
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


def contrary() -> list[dict[str, Any]]:
    """Answers that training on `rows` makes less likely."""
    return [{"messages": [{"role": "user", "content": "the order"}, {"role": "assistant", "content": "zzq xxv 99"}]}]


def write_rows(path: Path, given: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as a .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


def tiny_config(folder: Path, **overrides: Any) -> RunConfig:
    """A config over a tiny model and a few rows in `folder`; overrides are dotted keys with `__` for the dot."""
    if not (folder / "model").exists():
        save_tiny(folder / "model", overrides.pop("model_type", "llama"))
        write_rows(folder / "train.jsonl", rows())
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


def tiny_fit(config: RunConfig, observer: Callable[[Event], None] = lambda _: None) -> tuple[Fit, RunState]:
    """The loop's inputs for a config, with nothing in the run's folder yet."""
    plan = plan_run(config)
    adapted = prepared_model(plan)
    assert config.training.output_dir is not None
    folder = RunFolder(Path(config.training.output_dir))
    folder.path.mkdir(parents=True, exist_ok=True)
    state = RunState()
    return fit_of(plan, folder, adapted, observer, lambda _: lambda prompt: prompt, state), state


class Recorder(torch.optim.SGD):
    """An optimizer that changes nothing and keeps the gradients of each step."""

    def __init__(self, fit: Fit) -> None:
        super().__init__(list(fit.adapted.trainable.values()), lr=0.0)
        self.names = list(fit.adapted.trainable)
        self.steps: list[dict[str, torch.Tensor]] = []

    def step(self, closure: Any = None) -> None:
        """Keep the gradients."""
        gradients = (p.grad for group in self.param_groups for p in group["params"])
        kept = {n: g.detach().clone() for n, g in zip(self.names, gradients, strict=True) if g is not None}
        self.steps.append(kept)


def recorded(config: RunConfig, *, prepare: Callable[[Fit], None] = lambda _: None) -> list[dict[str, torch.Tensor]]:
    """The gradients of each step of a run, nothing being learned; B is drawn so that every gradient is there."""
    from loraft.training.loop import fit

    run, state = tiny_fit(config)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in run.adapted.trainable.items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    recorder = Recorder(run)
    run = replace(run, optimizer=recorder, save_weights=lambda _: None)
    prepare(run)
    fit(run, state)
    return recorder.steps
