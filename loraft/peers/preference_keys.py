"""Training by which answers are better: what other tools call the losses of `task: preference`, and their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, get_args

from loraft.config.aliases import BY_PAIRS
from loraft.config.choices import PreferenceLossName
from loraft.config.preference_section import WITH_REFERENCE
from loraft.config.yaml_nodes import Value
from loraft.errors import ConfigError
from loraft.peers.translation import Translation

LOSSES: Mapping[str, PreferenceLossName] = {"sigmoid": "dpo", **{loss: loss for loss in get_args(PreferenceLossName)}}
"""What the losses are called elsewhere."""
OF_TRL = ("dpo", "orpo", "cpo", "kto")
"""Commands and scripts of TRL that train by pairs, or by answers with a label."""
OF_SFT = ("nll", "chunked_nll", "dft")
"""The losses of TRL that are of examples; by which training one of the others is meant its command tells alone."""
NAMES = ("rl", "stage", "pref_loss", "loss_type", "dpo_loss_type")
"""Keys that name the loss, or that answers are compared."""
OF_ANSWERS = (
    "beta", "label_smoothing", "desirable_weight", "undesirable_weight", "cpo_alpha", "simpo_gamma",
    "precompute_ref_log_probs", "disable_dropout",
)  # fmt: skip
"""Keys that TRL's trainers of answers have, and the one of examples has not."""
NOT_HERE = (
    "reward_model", "process_reward_model", "reward_funcs", "num_generations", "diffusion", "task_type",
    "lora_task_type", "rl", "stage", "reinit_weights", "train_from_scratch", "mixture_of_depths",
)  # fmt: skip
"""Keys that may ask for a training that loraft does not have."""
OTHERWISE = (
    "grpo", "rloo", "reward", "ppo", "online_dpo", "dpo_online", "gkd", "bco", "prm", "xpo", "distillation",
    "async_grpo",
)  # fmt: skip
"""Commands and scripts of TRL that loraft has no training for."""


class AnswerRows(NamedTuple):
    """How axolotl holds rows whose answers are compared.

    Text is printed with a template there, as it is here behind an instruction, and not behind a prompt.

    Attributes:
        types: The columns that a type reads, ours: theirs, where they differ; of most types by what stands behind the
            name of a template.
        fields: Keys of a dataset, or of a type that is spelt out, that name a column, and what that is called here.
    """

    types: Mapping[str, Mapping[str, str]]
    fields: Mapping[str, str]


PAIRS = AnswerRows(
    {
        "argilla": {"instruction": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
        "icr": {"instruction": "input"},
        "intel": {"instruction": "question"},
        "prompt_pairs": {"instruction": "prompt"},
        "chat_template": {"prompt": "messages"},
        "chat_template.default": {"prompt": "messages"},
        "ultra": {},
        "argilla_chat": {},
        "passthrough": {},
        "default": {},
    },
    {"field_messages": "prompt", "field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"},
)
WHOLE_PAIRS = AnswerRows({**PAIRS.types, "argilla": {}}, PAIRS.fields)
"""Those of orpo, where one type has whole conversations."""
SINGLE = AnswerRows(
    {
        "argilla": {"instruction": "instruction"},
        "argilla_chat": {"messages": "completion"},
        "intel": {"instruction": "question"},
        "prompt_pairs": {"instruction": "prompt"},
        "ultra": {"instruction": "prompt"},
        "chat_template": {},
        "default": {},
    },
    {"field_messages": "messages", "field_prompt": "prompt", "field_completion": "completion", "field_label": "label"},
)
"""Answers with a label."""


def translate_task(translation: Translation) -> None:
    """What is learned: an answer, or which answers are better; what loraft does not train is refused.

    Raises:
        ConfigError: It is another training, by rewards say, or by a loss that there is not.
    """
    peer, where = translation.peer, str(translation.file.path)
    command = _training_of(translation.file.command)
    if peer == "trl" and command in OTHERWISE:
        remedy = "loraft trains by examples, and by pairs of answers with task: preference."
        raise ConfigError(f"is a run of {command}, which loraft does not have", where=where, remedy=remedy)
    for name in NOT_HERE:
        translation.refuse_by_table(name)
    if peer == "trl" and command not in OF_TRL:
        _refuse_without_a_command(translation)
    first = next((name for name in NAMES[:2] if translation.value(name) not in (None, False, "sft", "pt")), None)
    if first is None and not (peer == "trl" and command in OF_TRL):
        return
    loss = _loss(translation, str(command if command in OF_TRL else translation.value("rl", "stage")))
    translation.loss = loss
    becomes: dict[str, Value] = {"task": BY_PAIRS, "preference.loss": loss}
    for name in NAMES:
        translation.write(name, becomes)
    translation.of_itself(becomes, f"what trl {command} trains")
    _add_what_goes_without_saying(translation)


def _training_of(command: str | None) -> str | None:
    """What a subcommand or a script trains by its name: `run_dpo` is dpo."""
    words = [] if command is None else [command, *command.split("_")]
    return next((word for word in words if word in (*OTHERWISE, *OF_TRL)), command)


def _refuse_without_a_command(translation: Translation) -> None:
    """Refuse keys of TRL that only its trainers of answers have, where no command says which of these is meant.

    Raises:
        ConfigError: There is such a key.
    """
    says = [name for name in OF_ANSWERS if translation.value(name) is not None]
    says += ["loss_type"] if not {*_listed(translation.value("loss_type"))} <= {*OF_SFT} else []
    if says:
        name = translation.file.path.name
        remedy = f"Import a file that holds the command, such as trl dpo with {name} as its config."
        translation.refuse(says[0], "it compares answers, and the command alone tells by which training", remedy)


def _loss(translation: Translation, otherwise: str) -> PreferenceLossName:
    """The loss that is named; sigmoid, or no name, is the usual one of what trains."""
    said: str | None = None
    for name in reversed(NAMES[2:]):
        value = translation.value(name)
        listed = _listed(value)
        if len(listed) > 1 or not {*listed} <= LOSSES.keys():
            remedy = f"The losses of task: preference are {', '.join(get_args(PreferenceLossName))}."
            translation.refuse(name, f"there is no {' with '.join(listed)} here", remedy)
        said = listed[0] if listed else said
    usual = LOSSES.get(otherwise, "dpo")
    return usual if said in (None, "sigmoid") or usual == "kto" else LOSSES[said]


def _listed(value: Value) -> list[str]:
    """The losses that a value names, one or several."""
    return [str(each) for each in (value if isinstance(value, list) else [value]) if each is not None]


def _add_what_goes_without_saying(translation: Translation) -> None:
    if translation.loss == "simpo":
        translation.of_itself({"preference.beta": 0.1})
        if translation.peer != "llama-factory":  # by TRL's trainer of CPO
            translation.of_itself({"preference.sft_weight": 1})
    if translation.peer == "trl":
        translation.of_itself({"training.learning_rate": 1e-6})
        if translation.loss == "kto":
            translation.of_itself({"data.shuffle": False}, "trl kto keeps the order of the rows")


def refuse_without_a_reference(translation: Translation) -> None:
    """Refuse a loss that compares with the base, where every weight of it is trained.

    Raises:
        ConfigError: That is so.
    """
    if translation.method == "full" and translation.loss in WITH_REFERENCE:
        name = next((name for name in NAMES if name in translation.file.keys), next(iter(translation.file.keys)))
        why = f"{translation.loss} compares with the base, which a run that trains every weight does not keep"
        others = "" if translation.loss == "kto" else ", or by orpo, simpo or cpo"
        translation.refuse(name, why, f"Train an adapter{others}.")


def rows_of(loss: str) -> AnswerRows:
    """How axolotl holds the rows of a loss."""
    return {"kto": SINGLE, "orpo": WHOLE_PAIRS}.get(loss, PAIRS)


def type_of_answers(said: Mapping[str, Value], loss: str) -> Mapping[str, str] | None:
    """The columns that the type of such a dataset reads, ours: theirs; None where there is no such type."""
    kind, types = said.get("type"), rows_of(loss).types
    if kind is None or isinstance(kind, dict):
        return {}
    return types.get(str(kind), types.get(str(kind).rpartition(".")[2]))


def columns_of_answers(said: Mapping[str, Value], loss: str) -> dict[str, Value]:
    """Our names of the columns of a dataset whose answers are compared: theirs, where they differ."""
    kind, names = said.get("type"), {**rows_of(loss).fields}
    named = {**said, **(kind if isinstance(kind, dict) else {})}
    columns: dict[str, Value] = {**(type_of_answers(said, loss) or {})}
    if isinstance(kind, dict):
        names["field_system"] = "system"
        if kind.get("prompt_format"):  # a template prints it, and does so here behind an instruction
            columns["instruction"] = named.get("field_prompt") or "prompt"
            del names["field_prompt"]
    for key, ours in names.items():
        if named.get(key) not in (None, ours):
            columns[ours] = named[key]
    return columns
