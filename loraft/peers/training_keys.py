"""How a run goes: precision, schedule, how often it is evaluated and saved, and to whom it reports."""

from __future__ import annotations

import re
from collections.abc import Mapping

from loraft.config.aliases import name_of
from loraft.config.schema_info import KEYS
from loraft.config.yaml_nodes import Value
from loraft.peers.foreign_file import Peer
from loraft.peers.row_sources import STREAMS
from loraft.peers.translation import Translation, ours_of

PRECISIONS = {
    "bf16": "bfloat16", "pure_bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16",
    "float32": "float32", "fp32": "float32",
}  # fmt: skip
OF_ITSELF: Mapping[Peer, Mapping[str, Value]] = {
    "axolotl": {
        "seed": 42,
        "data.max_length": 512,
        "training.num_train_epochs": 1,
        "training.per_device_train_batch_size": 1,
    },
    "llama-factory": {
        "seed": 42,
        "lora.r": 8,
        "training.learning_rate": 5e-5,
        "training.lr_scheduler_type": "linear",
        "training.warmup_steps": 0,
        "training.save_steps": 500,
    },
    "trl": {
        "seed": 42,
        "lora.dropout": 0.05,
        "data.max_length": 1024,
        "training.learning_rate": 2e-5,
        "training.lr_scheduler_type": "linear",
        "training.warmup_steps": 0,
        "training.save_steps": 500,
    },
}
"""What each tool does where nothing is said, and loraft would do otherwise (axolotl 0.19, LLaMA-Factory 0.9, TRL 1)."""
LOGGING_STEPS: Mapping[Peer, int] = {"llama-factory": 500, "trl": 10}
"""How often they log where nothing is said, and evaluate where `eval_strategy: steps` says no number."""
TRACKERS = {
    "wandb_project": "wandb", "use_wandb": "wandb", "use_mlflow": "mlflow", "mlflow_experiment_name": "mlflow",
    "use_tensorboard": "tensorboard", "use_swanlab": "swanlab", "use_trackio": "trackio", "use_comet": "comet_ml",
    "trackio_project_name": "trackio", "comet_project_name": "comet_ml",
}  # fmt: skip
"""Keys that have a run reported, and to whom."""
KEEPS_THE_ORDER = {"shuffle_merged_datasets": "curriculum_sampling", "shuffle_dataset": "train_sampling_strategy"}
"""Keys that say whether rows are shuffled once, and those that say whether they are drawn anew."""
CHANGES_NOTHING = re.compile(r"cut_cross_entropy|liger|kernels|expert_parallel|swanlab|lm_eval")
"""Plugins of axolotl that compute the same, or measure and report."""


def translate_training(translation: Translation) -> None:
    """All that a file says of how a run goes, and behind that what its tool does of itself."""
    for step in STEPS:
        step(translation)


def _precision(translation: Translation) -> None:
    """The dtype: the one that is switched on; what is switched off says nothing beside it."""
    chosen = next((name for name in PRECISIONS if translation.value(name) in (True, "full", "true")), None)
    off = [name for name in ("bf16", "fp16") if translation.value(name) is False]
    for name in PRECISIONS:
        if chosen is not None and name != chosen:
            translation.leave(name, f"{chosen} is the precision")
    if chosen is not None:
        translation.write(chosen, {"model.dtype": PRECISIONS[chosen]})
    elif "bf16" in off and translation.value("fp16") in (None, False) and _is_float32_without(translation):
        translation.write("bf16", {"model.dtype": "float32"})
        translation.leave("fp16", "model.dtype says it")
    for name in off:
        translation.leave(name, "model.dtype: auto is bfloat16 where the machine multiplies it")


def _is_float32_without(translation: Translation) -> bool:
    """Whether a run is in float32 where neither bf16 nor fp16 is on: LLaMA-Factory then goes by the model."""
    said = translation.value("dtype", "torch_dtype")
    return translation.peer == "axolotl" or (translation.peer == "trl" and said is None)


def _length(translation: Translation) -> None:
    """Steps, epochs and batches."""
    steps = translation.number("max_steps")
    if steps is not None and steps <= 0:
        translation.leave("max_steps", "no number of steps is set: training.num_train_epochs counts")
    size, micro = translation.number("batch_size"), translation.number("micro_batch_size")
    if translation.peer == "axolotl" and size and micro:
        if translation.value("gradient_accumulation_steps") is None and size % micro == 0:
            becomes: dict[str, Value] = {"training.gradient_accumulation_steps": int(size // micro)}
            translation.write("batch_size", becomes, "rows of an optimizer step, of which micro_batch_size is a batch")
        translation.leave("batch_size", "micro_batch_size and gradient_accumulation_steps say it")
    for name in ("max_grad_norm", "gradient_clipping"):
        if translation.number(name) == 0:
            translation.write(name, {"training.max_grad_norm": None}, "0 does not clip")


def _schedule(translation: Translation) -> None:
    """The warm-up and how the rate falls."""
    if translation.value("lr_scheduler", "lr_scheduler_type") == "constant":  # constant_with_warmup is another word
        why = f"constant has no warm-up in {translation.tool}"
        for name in ("warmup_steps", "warmup_ratio"):
            translation.write(name, {"training.warmup_steps": 0}, why)
        translation.of_itself({"training.warmup_steps": 0}, why)
    if (translation.number("warmup_steps") or 0) > 0:
        translation.leave("warmup_ratio", "warmup_steps goes before it")
    elif translation.number("warmup_ratio") is not None:
        translation.leave("warmup_steps", "warmup_ratio says it")
    name = "lr_scheduler" if translation.is_open("lr_scheduler") else "lr_scheduler_type"
    schedule = translation.value(name)
    if schedule is not None:
        value, difference = ours_of(schedule, KEYS["training.lr_scheduler_type"].choices)
        translation.write(name, {"training.lr_scheduler_type": value}, difference)
    ratio = translation.number("cosine_min_lr_ratio")
    if ratio is not None and schedule not in (None, "cosine"):
        translation.leave("cosine_min_lr_ratio", f"{name} is {schedule}, which has none")
    if not translation.value("lr_scheduler_kwargs"):
        translation.leave("lr_scheduler_kwargs", "holds nothing")


def _cadence(translation: Translation) -> None:
    """How often a run is evaluated and saved."""
    _strategies(translation)
    epochs = translation.number("num_epochs", "num_train_epochs") or 1
    for name, ours in (("evals_per_epoch", "training.eval_steps"), ("saves_per_epoch", "training.save_steps")):
        times = translation.number(name)
        if times is None:
            continue
        if times <= 0:
            otherwise = "; data.eval: null evaluates nothing" if ours == "training.eval_steps" else ""
            translation.leave(name, f"null is once an epoch{otherwise}")
        elif times == 1 or times * epochs <= 1:
            translation.write(name, {ours: None}, "null is once an epoch")
        else:
            why = f"{times:g} an epoch, epochs: {epochs:g}; a share of all steps"
            translation.write(name, {ours: round(1 / (times * epochs), 6)}, why)
    if translation.value("logging_strategy") == "steps" and translation.value("logging_steps") is not None:
        translation.leave("logging_strategy", "training.logging_steps says so")


def _strategies(translation: Translation) -> None:
    """Whether a run is evaluated and saved by steps, which alone counts them, or by epochs."""
    saved = translation.value("save_strategy")
    if saved not in (None, "steps"):
        why = "a run is saved in any case, at its best evaluation too: null is once an epoch"
        translation.write("save_strategy", {"training.save_steps": None}, "" if saved == "epoch" else why)
        for name in ("save_steps", "saves_per_epoch"):
            translation.leave(name, "save_strategy goes before it: a run is saved once an epoch")
    elif saved is not None and translation.value("save_steps") is not None:
        translation.leave("save_strategy", "training.save_steps says so")
    for strategy in ("eval_strategy", "evaluation_strategy"):
        said = translation.value(strategy)
        if said not in (None, "steps"):
            translation.leave("eval_steps", f"{strategy} is {said}, and goes before it")
        elif said is not None and translation.value("eval_steps") is not None:
            translation.leave(strategy, "training.eval_steps says so")
        elif said is not None and translation.peer in LOGGING_STEPS:
            every: Value = translation.value("logging_steps") or LOGGING_STEPS[translation.peer]
            translation.write(strategy, {"training.eval_steps": every}, "it is evaluated as often as it is logged")


def _template(translation: Translation) -> None:
    """How conversations are printed: each tool has templates by name, and loraft those of the tokenizers."""
    for name in ("chat_template", "template", "chat_template_jinja"):
        value = translation.value(name)
        if value is None or not translation.is_open(name):
            continue
        word = str(value)
        if word in ("chatml", "alpaca") or word.endswith((".jinja", ".jinja2")):
            translation.write(name, {"data.chat_template": value})
        elif word.startswith("tokenizer_default"):
            translation.write(name, {"data.chat_template": "auto"})
        elif word == "jinja":
            translation.leave(name, "chat_template_jinja says it")
        elif name == "chat_template_jinja" or re.search(r"\{[{%]", word):
            translation.leave(name, "keep the template in a .jinja file, and name it in data.chat_template")
        else:
            why = f"the tokenizer's own, where {translation.tool} has one that it calls {word}; without one, chatml"
            translation.write(name, {"data.chat_template": "auto"}, why)


def _trackers(translation: Translation) -> None:
    """To whom a run reports."""
    wanted = [to for name, to in TRACKERS.items() if translation.value(name) not in (None, False, "")]
    if translation.value("wandb_mode") == "disabled" or translation.value("use_wandb") is False:
        wanted = [to for to in wanted if to != "wandb"]
    said = translation.value("report_to")
    listed = said if isinstance(said, list) else [] if said is None else [said]
    if "all" in listed or "azure_ml" in listed:
        translation.leave("report_to", "a tracker is named, as in training.report_to: [tensorboard]")
    else:
        wanted += [str(name) for name in listed if name not in ("none", False)]
    trackers: list[Value] = [*dict.fromkeys(wanted)]
    translation.write("report_to", {"training.report_to": trackers})
    for name in TRACKERS:
        if name.startswith("use_") and translation.value(name) is True:
            translation.write(name, {"training.report_to": trackers})
    if trackers:
        translation.of_itself({"training.report_to": trackers}, f"{translation.tool} reports where a project is named")


def _order(translation: Translation) -> None:
    """Whether rows are shuffled before training, which draws them in another order in any case but for streams."""
    if any(translation.value(name) for name in STREAMS):
        return
    for name, order in KEEPS_THE_ORDER.items():
        why = f"{translation.tool} draws rows anew in each epoch whatever it says, unless {order} keeps their order"
        translation.leave(name, why)


def _hub(translation: Translation) -> None:
    """Whether what was trained is put into a repository: axolotl does so where one is named, the others when told."""
    if translation.peer == "axolotl":
        return
    repository = translation.value("hub_model_id")
    if translation.value("push_to_hub") is not True:
        for name in ("hub_model_id", "push_to_hub"):
            translation.leave(name, f"{translation.tool} puts nothing into a repository without push_to_hub: true")
    elif repository is None:
        translation.leave("push_to_hub", "name the repository: training.push_to_hub: OWNER/NAME")
    else:
        translation.write("push_to_hub", {"training.push_to_hub": repository})


def _sharding(translation: Translation) -> None:
    """What FSDP splits among the processes, by its words and by its config, whose keys begin with fsdp_ or do not."""
    config = translation.value("fsdp_config")
    config = config if isinstance(config, dict) else {}
    said = {name_of(key).removeprefix("fsdp_"): value for key, value in config.items()}
    text = f"{translation.value('fsdp') or ''} {said.get('sharding_strategy')} {said.get('reshard_after_forward')}"
    words = {*re.findall(r"\w+", text.lower())}
    becomes: dict[str, Value] = {"distributed.strategy": "ddp" if "no_shard" in words else "fsdp2"}
    if words & {"shard_grad_op", "false"}:
        becomes["distributed.reshard"] = False
    if words & {"hybrid_shard", "hybrid_shard_zero2"}:
        becomes["distributed.hybrid_shard"] = True
    if "offload" in words or said.get("offload_params") is True:
        becomes["distributed.cpu_offload"] = True
    if said.get("activation_checkpointing") is True:
        becomes["training.gradient_checkpointing"] = True
    if said:
        translation.write("fsdp_config", becomes)
    if translation.value("fsdp"):
        translation.write("fsdp", becomes)


def _plugins(translation: Translation) -> None:
    """Tell of each plugin of axolotl that is more than a kernel or a log."""
    plugins = translation.value("plugins")
    translation.by_table("plugins")
    for number, each in enumerate(plugins if isinstance(plugins, list) else []):
        if not CHANGES_NOTHING.search(str(each)):
            why = "no plugin is loaded, and what this one changes of the training is not here"
            translation.detail("plugins", f"plugins[{number}]", each, why)


def _overrides(translation: Translation) -> None:
    """What axolotl has otherwise than the base's own config: of these the loss of a mixture's routers is here."""
    for name in ("model_config", "overrides_of_model_config"):
        said = translation.value(name)
        if translation.peer != "axolotl" or not isinstance(said, dict):
            continue
        others = said.keys() - {"output_router_logits", "router_aux_loss_coef"}
        why = "a model is trained as its config.json says: change it there, and name the folder in model.name_or_path"
        if said.get("output_router_logits") is True:
            for key in others:
                translation.detail(name, f"{name}.{key}", said[key], why)
            translation.write(name, {"training.router_aux_loss_coef": said.get("router_aux_loss_coef", "auto")})
        translation.leave(name, why if others else "the loss of the routers is left out, as it is here")


def _of_itself(translation: Translation) -> None:
    """What the tool does of itself, where loraft would do otherwise."""
    defaults = OF_ITSELF[translation.peer]
    if (longest := translation.file.keys.get("max_length")) is not None and longest.value is None:
        why = "null cuts no row: longer ones are refused, with the data.max_length that keeps them"
        translation.write("max_length", {"data.on_overlength": "error"}, why)
        defaults = {ours: value for ours, value in defaults.items() if ours != "data.max_length"}
    translation.of_itself(defaults)
    stage = translation.value("stage")
    if translation.peer == "axolotl":
        why = "axolotl's default is 3 % of the steps, and no more than 100"
        steps = translation.number("max_steps") or 0
        translation.of_itself({"training.warmup_steps": min(int(0.03 * steps), 100) if steps > 0 else 0.03}, why)
        if translation.value("val_set_size", "test_datasets"):
            size: Value = translation.value("micro_batch_size") or 1
            why = "axolotl's default is micro_batch_size"
            translation.of_itself({"training.per_device_eval_batch_size": size}, why)
    elif stage != "pt":
        why = f"{translation.tool} cuts a longer row; here its beginning is kept"
        translation.of_itself({"data.on_overlength": "truncate"}, why)
    if translation.peer == "llama-factory":
        rank = translation.number("lora_rank")
        if stage == "pt":
            translation.of_itself({"data.packing": "fill"}, "LLaMA-Factory packs texts by default")
        why = "LLaMA-Factory's default is twice the rank"
        translation.of_itself({"lora.alpha": 2 * int(8 if rank is None else rank)}, why)


STEPS = (
    _template, _precision, _length, _schedule, _cadence, _trackers, _order, _hub, _sharding, _overrides, _plugins,
    _of_itself,
)  # fmt: skip
