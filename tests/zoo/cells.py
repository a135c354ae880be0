"""What loraft does with a tiny model: each thing that is done is a cell of the table in docs/models.md.

The functions are those behind the commands, in one process. What they give is compared with transformers and peft
alone, which read the same files.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, PreTrainedModel

from loraft import api
from loraft.config.choices import ModelGroup
from loraft.config.schema import RunConfig
from loraft.events import Event
from loraft.inference.requests import GenerationRequest
from loraft.models.modules import decoder_inputs
from loraft.models.probe import spec_of
from loraft.models.registry import FAMILIES
from loraft.planning.run_plan import plan_run
from loraft.tokenization.examples import Example
from loraft.training.run_events import StepDone
from tests.training.building import ROWS_OF, write_rows
from tests.zoo.alone import uncached
from tests.zoo.models import GROUPS, MOST_USED, QUICK, also_needed, save

CELLS = ("check", "loss", "adapter", "resume", "peft", "generate", "merge")
"""What is done, in this order; what stands on a cell that fails is not tried."""
LABELS_OF_ROWS = ("late", "order", "text")
STEPS, ROWS, PROMPT, NEW_TOKENS = 3, 6, "the order is late", 8
TOLERANCE = {"loss": 1e-5, "peft": 1e-4, "merge": 1e-4}
"""Of a loss, and of the largest logit of a text, relatively where that is above 1: float32 rounds numbers of a size
alike. Zamba2's merged logits, of 7, are 1.2e-4 from the adapted ones, and 5e-6 in float64."""


class CellError(AssertionError):
    """Two things that should be the same and are not."""


@dataclass(eq=False)
class Tried:
    """A tiny model in a folder, and what loraft makes of it."""

    model_type: str
    group: str
    folder: Path
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = uncached(self.model_type, self.group)
        if self.group == "classification":
            model.config.id2label = dict(enumerate(LABELS_OF_ROWS))
            model.config.label2id = {label: number for number, label in enumerate(LABELS_OF_ROWS)}
        self.task = task_of(self.group, two_stacks=model.config.is_encoder_decoder)
        two_stacks = model.config.is_encoder_decoder
        save(model, self.folder / "model", ends=two_stacks and self.group == "classification")  # BART decides there
        write_rows(self.folder / "train.jsonl", ROWS_OF[self.task](ROWS))

    def config(self, output: str) -> RunConfig:
        """The run that is tried."""
        return RunConfig.model_validate(
            {
                "task": self.task,
                "model": {"name_or_path": str(self.folder / "model"), "dtype": "float32"},
                "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
                "data": {"train": str(self.folder / "train.jsonl"), "eval": None, "max_length": 96},
                "training": {
                    "output_dir": str(self.folder / output),
                    "max_steps": STEPS,
                    "per_device_train_batch_size": ROWS,
                    "learning_rate": 0.01,
                    "logging_steps": 1,
                    "save_steps": STEPS - 1,
                },
            }
        )

    # Cells

    def check(self) -> None:
        """The run is planned without a weight being loaded."""
        api.check(self.config("run"))

    def loss(self) -> None:
        """The first step's loss is that of transformers on the rows one by one, each token counting the same."""
        self.losses = []
        api.train(self.config("run"), observer=self._observe)
        examples = plan_run(self.config("again")).data.train
        given = sum(summed_loss(self.alone.train(), self.group, example) for example in examples)
        self.alone.eval()
        expected = given / sum(example.trained for example in examples)
        if abs(self.losses[0] - expected) > TOLERANCE["loss"] * max(1.0, abs(expected)):
            raise CellError(f"the first loss is {self.losses[0]:.6f}, and transformers' is {expected:.6f}")

    def adapter(self) -> None:
        """Every lora_B has learned, in one layer at the least: a last layer may have parts that nothing reads."""
        weights = load_file(self.adapted / "adapter_model.safetensors")
        learned = {name: bool(weight.any()) for name, weight in weights.items() if "lora_B" in name}
        kinds = {re.sub(r"[.]\d+[.]", ".N.", name) for name, has in learned.items() if has}
        if still := [name for name in learned if re.sub(r"[.]\d+[.]", ".N.", name) not in kinds]:
            raise CellError(f"{len(still)} lora_B are zero: {', '.join(still[:3])}")

    def resume(self) -> None:
        """A run that goes on from its second step ends with the bytes of the one that was not stopped."""
        resumed, name = self.folder / "resumed", "adapter_model.safetensors"
        shutil.copytree(self.folder / "run", resumed)
        shutil.rmtree(resumed / "adapter")
        shutil.rmtree(resumed / "checkpoints" / f"step-{STEPS:06}")
        api.train(self.config("resumed"), resume=True)
        if (resumed / "adapter" / name).read_bytes() != (self.adapted / name).read_bytes():
            raise CellError("the resumed run ends with other weights")

    def peft(self) -> None:
        """Peft alone reads the adapter, and gives the logits that loraft gives."""
        self._same("peft", self._logits(self._open.model), self._logits(self.by_peft))

    def generate(self) -> None:
        """Eight tokens, greedy, are those of transformers' `generate`."""
        if not hasattr(self._open, "voice"):
            return
        voice = self._open.voice()
        prompt = voice.renderer.prompt_ids(voice.conversation(PROMPT))
        options = GenerationRequest(max_new_tokens=NEW_TOKENS, temperature=0.0)
        (ours,) = api.OpenModel(self._open).complete([PROMPT], options=options)
        stops = list(voice.stop_ids)
        text = torch.tensor([prompt])
        theirs = self.by_peft.generate(
            input_ids=text, attention_mask=torch.ones_like(text), max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=stops, use_cache=True,
        )[0].tolist()  # fmt: skip
        new = theirs[1:] if self.task == "seq2seq_lm" else theirs[len(prompt) :]
        new = new[: next((place for place, token in enumerate(new) if token in stops), len(new))]
        if list(ours.token_ids) not in (new, self._greedy(prompt, stops)):
            raise CellError(f"the answer is {list(ours.token_ids)}, and transformers' is {new}")

    def merge(self) -> None:
        """The merged model, read by transformers alone, gives the logits of the adapted one.

        loraft's own comparison, which reads both once more, is made of the most used and of one of each kind.
        """
        verified = (self.group, self.model_type) in (*QUICK, *MOST_USED)
        api.merge(str(self.folder / "run"), self.folder / "merged", positions=16, verified=verified)
        merged = GROUPS[self.group].auto.from_pretrained(self.folder / "merged", dtype=torch.float32).eval()
        self._same("merge", self._logits(merged), self._logits(self.by_peft))

    # What several cells look at

    @property
    def adapted(self) -> Path:
        """The folder of the adapter."""
        return self.folder / "run" / "adapter"

    @cached_property
    def alone(self) -> PreTrainedModel:
        """The base as transformers reads it."""
        base: PreTrainedModel = GROUPS[self.group].auto.from_pretrained(self.folder / "model", dtype=torch.float32)
        return base.eval()

    @cached_property
    def by_peft(self) -> Any:
        """The adapted model as peft reads it."""
        return PeftModel.from_pretrained(self.alone, str(self.adapted)).eval()

    @cached_property
    def _open(self) -> Any:
        """The adapted model as loraft reads it."""
        from loraft.evaluation.open_model import RequestedModel
        from loraft.events import ignored

        requested = RequestedModel(str(self.folder / "run"))
        return requested.classifier(ignored) if self.task == "seq_cls" else requested.session()

    def _greedy(self, prompt: list[int], stops: list[int]) -> list[int]:
        """The likeliest tokens by the logits of all that is there, read anew for each.

        transformers' `generate` is another where it numbers positions otherwise than the model does by itself: RoBERTa.
        """
        ids = list(prompt)
        with torch.no_grad():
            while self.task == "causal_lm" and len(ids) < len(prompt) + NEW_TOKENS:
                text = torch.tensor([ids])
                given = also_needed(self.by_peft, text) | {"attention_mask": torch.ones_like(text)}
                token = int(self.by_peft(input_ids=text, **given).logits[0, -1].argmax())
                if token in stops:
                    break
                ids.append(token)
        return ids[len(prompt) :]

    def _observe(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.losses.append(event.loss)

    def _logits(self, model: Any) -> torch.Tensor:
        """`[1, time, vocab]` or `[1, classes]`, the logits of one text."""
        text = torch.tensor([[5, 9, 40, 41, 7, 120, 33, 2]])
        given = {"decoder_input_ids": text[:, :4]} if self.task == "seq2seq_lm" else also_needed(model, text)
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=text, attention_mask=torch.ones_like(text), **given).logits
        return logits

    def _same(self, cell: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        largest = max(1.0, theirs.abs().max().item())
        if (apart := (ours - theirs).abs().max().item()) > TOLERANCE[cell] * largest:
            raise CellError(f"a logit of at most {largest:.2g} differs by {apart:.2g}")


def task_of(group: str, *, two_stacks: bool) -> str:
    """The task that a group's models are trained for."""
    return "seq_cls" if group == "classification" else "seq2seq_lm" if two_stacks else "causal_lm"


def summed_loss(model: PreTrainedModel, group: str, example: Example) -> float:
    """A row's loss, summed over its trained tokens: the cross entropy of transformers' own logits.

    transformers' `loss` is the same for most; the lone decoders of encoder–decoders and XLM leave out the shift.
    """
    given = {"input_ids": torch.tensor([example.input_ids])}
    labels = torch.tensor([example.labels])
    if example.token_type_ids is not None:
        given["token_type_ids"] = torch.tensor([example.token_type_ids])
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    with torch.no_grad():
        if group == "classification":
            return float(functional.cross_entropy(model(**given).logits, labels[0]))
        if model.config.is_encoder_decoder:
            logits = model(**given, decoder_input_ids=decoder_inputs(model, labels)).logits
            return float(functional.cross_entropy(logits[0], labels[0], reduction="sum"))
        logits = model(**given, **also_needed(model, given["input_ids"])).logits
    return float(functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"))


def failures(tried: Tried, cells: Sequence[str] = CELLS) -> Iterator[tuple[str, str]]:
    """The cells that fail, each with what was said; what cannot be tried without them is left out."""
    for cell in cells:
        work: Callable[[], None] = getattr(tried, cell)
        try:
            work()
        except Exception as error:
            yield cell, f"{type(error).__name__}: {error}"
            if cell == "check" or not tried.adapted.exists():
                return


def path_of(folder: Path, group: str) -> str:
    """How the loss of the model in a folder is computed: `table`, `probed` or `plain`."""
    config = AutoConfig.from_pretrained(folder)
    use: ModelGroup = "classifier" if group == "classification" else "decoder"
    use = "encoder_decoder" if config.is_encoder_decoder and use == "decoder" else use
    spec = spec_of(config, use)
    return "plain" if spec.plain else "table" if spec in FAMILIES.values() else "probed"
