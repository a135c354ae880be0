"""What is rehearsed: every family by LoRA, each method, and what changes how rows, layers and adapters are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraft.config.choices import ModelGroup
from loraft.models.registry import GROUPS

Options = Mapping[str, Any]

IN_16_BITS: Options = {"model__dtype": "bfloat16"}
CHECKPOINTED: Options = {"training__gradient_checkpointing": "offload"}
METHODS: Mapping[str, Options] = {
    "lora": IN_16_BITS,
    "qlora": {"method": "qlora", **IN_16_BITS},
    "full": {"method": "full", **IN_16_BITS},
}
VARIANTS: Mapping[str, Options] = {
    "dora": {"lora__use_dora": True, **IN_16_BITS},
    "qdora": {"method": "qlora", "lora__use_dora": True, **IN_16_BITS},
    "dropout": {
        "lora__dropout": 0.1,
        "training__neftune_noise_alpha": 5.0,
        "training__label_smoothing_factor": 0.1,
        **IN_16_BITS,
    },
    "checkpointing": {"training__gradient_checkpointing": True, **IN_16_BITS},
    "streamed": {"model__stream_layers": True, **IN_16_BITS},
    "q-streamed": {"method": "qlora", "model__stream_layers": True, **CHECKPOINTED, **IN_16_BITS},
    "offload": {**CHECKPOINTED, **IN_16_BITS},
    "last": {"lora__layers": "last:1", **IN_16_BITS},
    "float16": {"model__dtype": "float16"},
    "float32": {"model__dtype": "float32"},
    "accumulated": {
        "training__gradient_accumulation_steps": 3,
        "training__per_device_train_batch_size": 2,
        **IN_16_BITS,
    },
}
OF_CAUSAL_LM: Mapping[str, Options] = {
    "padded": {"data__packing": "off", **IN_16_BITS},
    "plain": {"training__kernels": "plain", **IN_16_BITS},
    "filled": {"data__packing": "fill", **IN_16_BITS},
    "head": {"lora__modules_to_save": ["lm_head"], **IN_16_BITS},
    "tokens": {"model__add_tokens": ["<call>"], **IN_16_BITS},
}
OF_PREFERENCE: Mapping[str, Options] = {
    "pairs": IN_16_BITS,
    "q-pairs": {"method": "qlora", **IN_16_BITS},
    "full-pairs": {"method": "full", "preference__loss": "simpo", **IN_16_BITS},
    "answers": {"preference__loss": "kto", **IN_16_BITS},
    "padded-pairs": {
        "data__packing": "off",
        "preference__loss": "ipo",
        "training__per_device_train_batch_size": 10,
        **IN_16_BITS,
    },
}
"""Preferences, of pairs and by labels: with the base as the reference, computed anew each step or once, and without."""
OF_SEQ2SEQ_PREFERENCE = ("pairs", "answers")
"""Those of an encoder-decoder."""
OF_SEQ_CLS: Mapping[str, Options] = {"weights": {"training__class_weights": "balanced", **IN_16_BITS}}
PROBED = ("falcon", "mamba", "gpt_oss")
"""Decoders of which the table knows nothing: what is done with them is found by experiment, or the plain way."""
TRIED = ("checkpointing", "q-streamed", "float16", "accumulated", "filled")
"""Variants, besides the methods, in which the longest batch is tried before the first step."""
OF_EVERY_TASK = ("checkpointing", "q-streamed", "float16", "accumulated")
"""Variants that tasks differ in: the others are tried with `causal_lm` alone."""
SPECIMEN: Mapping[ModelGroup, str] = {"decoder": "llama", "encoder_decoder": "t5", "classifier": "bert"}
"""The family of each task that the variants are tried on."""
OTHERS = (("mistral", "float32"), ("gemma2", "offload"))
"""Variants that are another way of attention: windows in float32, and capped scores that are computed anew."""
BY_EACH_METHOD = {*SPECIMEN.values(), "gpt2", "gemma2", "gemma3_text", "mixtral", "phi3", "bart", "deberta-v2"}
"""Families of each kind of layer, which every method trains: what a family computes itself, one method shows."""
UNKNOWN_IN_FLOAT32 = {("mixtral", "full")}
"""Where experts multiply in float32, which torch can do on CUDA, and not without numbers."""
TASK_OF: Mapping[ModelGroup, str] = {
    "decoder": "causal_lm", "encoder_decoder": "seq2seq_lm", "classifier": "seq_cls",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run to rehearse, by the keys of its config; those of a group share a process, which takes seconds to begin."""

    group: str
    name: str
    task: str
    model_type: str
    options: Options = field(default_factory=dict)

    @property
    def is_thorough(self) -> bool:
        """Whether the run is stopped and gone on with, and answers drawn too: it is the method that differs in that."""
        return self.model_type in SPECIMEN.values() and self.variant in METHODS

    @property
    def variant(self) -> str:
        """What is done with the family: the method, or what changes how it computes."""
        return self.name.removeprefix(f"{self.model_type}-")

    @property
    def tries_longest(self) -> bool:
        """Whether the longest batch is tried before the first step: where that differs, since it takes time."""
        if self.model_type != SPECIMEN["decoder"] or self.task != "causal_lm":
            return self.model_type in SPECIMEN.values() and self.variant in METHODS
        return self.variant in (*METHODS, *TRIED)


def _cases() -> list[Case]:
    found = []
    for use, task in TASK_OF.items():
        # A classifier over a decoder is that decoder with another head: two of them do.
        families = [name for name in GROUPS[use] if use != "classifier" or name not in GROUPS["decoder"]]
        families += ["llama", "gpt2"] if use == "classifier" else []
        for method, options in METHODS.items():
            named = [name for name in families if method == "lora" or name in BY_EACH_METHOD]
            named = [name for name in named if (name, method) not in UNKNOWN_IN_FLOAT32]
            found += [Case(task, f"{name}-{method}", task, name, options) for name in named]
        own = OF_CAUSAL_LM if use == "decoder" else OF_SEQ_CLS if use == "classifier" else {}
        shared = {name: each for name, each in VARIANTS.items() if use == "decoder" or name in OF_EVERY_TASK}
        for variant, options in {**shared, **own}.items():
            name = SPECIMEN[use]
            if not (variant == "float16" and name == "t5"):  # which is refused
                found.append(Case("variants", f"{name}-{variant}", task, name, options))
    llama, t5 = SPECIMEN["decoder"], SPECIMEN["encoder_decoder"]
    found += [Case("variants", f"{llama}-{name}", "preference", llama, each) for name, each in OF_PREFERENCE.items()]
    found += [
        Case("variants", f"{t5}-{name}", "seq2seq_preference", t5, OF_PREFERENCE[name])
        for name in OF_SEQ2SEQ_PREFERENCE
    ]
    return found + [
        Case("variants", f"{name}-{variant}", "causal_lm", name, VARIANTS[variant]) for name, variant in OTHERS
    ]


def _probed() -> list[Case]:
    options = {"data__max_length": 96, **IN_16_BITS}
    return [Case("causal_lm", f"{name}-lora", "causal_lm", name, options) for name in PROBED]


CASES: Mapping[str, Case] = {f"{case.task}-{case.name}": case for case in [*_cases(), *_probed()]}
