"""The words that a config takes: tasks, methods, formats and dtypes. They load in no time, for help and completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Auto = Literal["auto"]
TaskName = Literal["causal_lm", "preference", "seq2seq_lm", "seq2seq_preference", "seq_cls"]
DEFAULT_TASK: TaskName = "causal_lm"
ModelGroup = Literal["decoder", "encoder_decoder", "classifier"]
"""What a model is taken for: one that goes on with a text, one that answers it, or one that tells its class."""
TASKS_OF_GROUP: Mapping[ModelGroup, tuple[TaskName, ...]] = {
    "decoder": ("causal_lm", "preference"),
    "encoder_decoder": ("seq2seq_lm", "seq2seq_preference"),
    "classifier": ("seq_cls",),
}
"""The tasks that models of a group are trained for."""
TASK_OF_GROUP: Mapping[ModelGroup, TaskName] = {group: tasks[0] for group, tasks in TASKS_OF_GROUP.items()}
"""The task that models of a group are trained for where nothing else is said."""
OF_ANSWERS: tuple[TaskName, ...] = ("preference", "seq2seq_preference")
"""The tasks that learn which answers are better."""
Method = Literal["lora", "qlora", "full"]
QuantizationType = Literal["nf4", "fp4", "int8"]
SpecialTokensInText = Literal["error", "text", "keep"]
TextBy = Literal["file", "paragraph", "line"]
DtypeName = Literal["float32", "bfloat16", "float16"]
Checkpointing = bool | Literal["offload"]
Strategy = Literal["auto", "ddp", "fsdp2"]
RowFormat = Literal[
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "text",
    "preferences",
    "unpaired",
    "translation",
    "classification",
]
PreferenceLossName = Literal["dpo", "ipo", "orpo", "simpo", "cpo", "kto"]
OptimName = Literal[
    "auto",
    "adamw",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "lion_8bit",
    "ademamix_8bit",
    "muon",
]
