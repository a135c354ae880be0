"""Training by which answers are better: what other tools call the losses of `task: preference`, and their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from loraft.config.aliases import BY_PAIRS, remedy_for
from loraft.config.choices import PreferenceLossName
from loraft.config.preference_section import WITH_REFERENCE
from loraft.config.yaml_nodes import Value
from loraft.errors import ConfigError
from loraft.peers.translation import Translation

LOSSES: Mapping[str, PreferenceLossName] = {"sigmoid": "dpo", **{loss: loss for loss in get_args(PreferenceLossName)}}
"""What the losses are called elsewhere."""
OF_TRL = {"dpo": "dpo", "orpo": "orpo", "cpo": "cpo", "kto": "kto"}
"""Commands and scripts of TRL that train by pairs, or by answers with a label."""
NAMES = ("rl", "stage", "pref_loss", "loss_type", "dpo_loss_type")
"""Keys that name the loss, or that answers are compared."""
OTHERWISE = (
    "grpo",
    "rloo",
    "reward",
    "ppo",
    "online_dpo",
    "gkd",
    "bco",
    "prm",
    "xpo",
    "distillation",
    "async_grpo",
)
"""Commands and scripts of TRL that loraft has no training for."""
TYPES: dict[str, Mapping[str, str]] = {
    "argilla": {"instruction": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
    "icr": {"instruction": "input"},
    "intel": {"instruction": "question"},
    "prompt_pairs": {"instruction": "prompt"},
    "ultra": {},
    "argilla_chat": {},
    "passthrough": {},
    "default": {},
}
"""Types of pairs of axolotl, behind the template's name, with our column names: theirs.

Text is printed with a template there, as it is here behind an instruction, and not behind a prompt.
"""
TYPES_OF_ORPO: dict[str, Mapping[str, str]] = {"argilla": {}}
"""Those that are read otherwise for orpo: whole conversations."""
TYPES_OF_KTO: dict[str, Mapping[str, str]] = {
    "argilla": {"instruction": "instruction"},
    "argilla_chat": {"messages": "completion"},
    "intel": {"instruction": "question"},
    "prompt_pairs": {"instruction": "prompt"},
    "ultra": {"instruction": "prompt"},
    "default": {},
}
"""The same of answers that a label calls good or bad."""
FIELDS = {"field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"}
FIELDS_OF_KTO = {"field_prompt": "prompt", "field_completion": "completion", "field_label": "label"}


def translate_task(translation: Translation) -> None:
    """What is learned: an answer, or which answers are better; what loraft does not train is refused.

    Raises:
        ConfigError: It is another training, by rewards say, or by a loss that there is not.
    """
    command, peer, where = translation.file.command, translation.file.peer, str(translation.file.path)
    if peer == "trl" and command in OTHERWISE:
        remedy = "loraft trains by examples, and by pairs of answers with task: preference."
        raise ConfigError(f"is a run of {command}, which loraft does not have", where=where, remedy=remedy)
    for name in ("reward_model", "process_reward_model", "diffusion", "task_type", "lora_task_type", "rl", "stage"):
        remedy = remedy_for(name, translation.value(name)) or ""
        if translation.value(name) is not None and remedy.startswith("There is no"):
            translation.refuse(name, remedy[0].lower() + remedy[1:].rstrip("."))
    first = next((name for name in NAMES[:2] if translation.value(name) not in (None, False, "sft", "pt")), None)
    if first is None and not (peer == "trl" and command in OF_TRL):
        return
    loss = _loss(translation, str(OF_TRL.get(command or "", translation.value("rl", "stage"))))
    translation.loss = loss
    becomes: dict[str, Value] = {"task": BY_PAIRS, "preference.loss": loss}
    for name in NAMES:
        translation.write(name, becomes)
    translation.of_itself(becomes, f"what trl {command} trains")
    _add_what_goes_without_saying(translation)


def _loss(translation: Translation, otherwise: str) -> PreferenceLossName:
    for name in NAMES[2:]:
        value = translation.value(name)
        if value is not None and not isinstance(value, list) and str(value) not in LOSSES:
            remedy = f"The losses of task: preference are {', '.join(get_args(PreferenceLossName))}."
            translation.refuse(name, f"there is no {value} here", remedy)
    said = "kto" if otherwise == "kto" else str(translation.value(*NAMES[2:]))
    return LOSSES.get(said, LOSSES.get(otherwise, "dpo"))


def _add_what_goes_without_saying(translation: Translation) -> None:
    if translation.loss == "simpo" and translation.value("pref_beta", "rl_beta", "beta") is None:
        translation.of_itself({"preference.beta": 0.1})
    if translation.loss == "simpo" and translation.file.peer == "axolotl" and translation.value("cpo_alpha") is None:
        translation.of_itself({"preference.sft_weight": 1})
    if translation.file.peer == "trl":
        translation.of_itself({"training.learning_rate": 1e-6} if translation.value("learning_rate") is None else {})


def refuse_without_a_reference(translation: Translation) -> None:
    """Refuse a loss that compares with the base, where every weight of it is trained.

    Raises:
        ConfigError: That is so.
    """
    if translation.method == "full" and translation.loss in WITH_REFERENCE:
        name = next((name for name in NAMES if name in translation.file.keys), next(iter(translation.file.keys)))
        why = f"{translation.loss} compares with the base, which a run that trains every weight does not keep"
        translation.refuse(name, why, "Train an adapter, or by orpo, simpo or cpo.")


def fields_of_answers(loss: str) -> Mapping[str, str]:
    """Keys of a dataset whose answers are compared that name a column, and what that is called here."""
    return FIELDS_OF_KTO if loss == "kto" else FIELDS


def type_of_answers(said: Mapping[str, Value], loss: str) -> Mapping[str, str] | None:
    """The columns that the type of such a dataset reads, ours: theirs; None where there is no such type."""
    kind = said.get("type")
    if kind is None or isinstance(kind, dict):
        return {}
    if kind in ("chat_template", "chat_template.default"):
        return {} if loss == "kto" else {"prompt": "messages"}
    types = TYPES_OF_KTO if loss == "kto" else TYPES | TYPES_OF_ORPO if loss == "orpo" else TYPES
    return types.get(str(kind).rpartition(".")[2])


def columns_of_answers(said: Mapping[str, Value], loss: str) -> dict[str, Value]:
    """Our names of the columns of a dataset of axolotl whose answers are compared: theirs, where they differ."""
    kind = said.get("type")
    named = {**said, **(kind if isinstance(kind, dict) else {})}
    columns: dict[str, Value] = {**(type_of_answers(said, loss) or {})}
    names = {"field_messages": "messages" if loss == "kto" else "prompt", **fields_of_answers(loss)}
    if isinstance(kind, dict):
        names["field_system"] = "system"
        if kind.get("prompt_format"):  # a template prints it, and does so here behind an instruction
            columns["instruction"] = named.get("field_prompt") or "prompt"
            del names["field_prompt"]
    for key, ours in names.items():
        if named.get(key) not in (None, ours):
            columns[ours] = named[key]
    return columns
