"""An adapter put into a loaded base: the only place that wraps a model with peft.

What is trained is float32 and what is frozen keeps the dtype that it was loaded in. peft's own casting of inputs
is off: where the base is not float32, every forward, of training and of generation, runs under `torch.autocast`.
Gradient checkpointing is switched on after `attach`, never before: peft would let gradients into the embeddings,
and so build a graph below the first adapted layer.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraft.adapters.adapted_parameters import adapted_parameters, wrap_packed
from loraft.adapters.adapter_config import resolved
from loraft.adapters.adapter_files import insert
from loraft.adapters.computed_starts import Whole, as_plain, begin_from_weights, magnitudes_of
from loraft.adapters.lora_factors import ADAPTER_NAME
from loraft.adapters.start_from import start_of
from loraft.adapters.targets import TargetModules, targets_in
from loraft.adapters.token_rows import as_indices, begin_rows, refuse_loose_rows, wrapped_rows
from loraft.adapters.trained_biases import keep_biases
from loraft.config.choices import Method
from loraft.config.schema import RunConfig
from loraft.config.sections import LoraSection
from loraft.kernels.linear_weights import is_quantized, product_dtype
from loraft.kernels.low_rank.dora import norms_from_factors
from loraft.kernels.low_rank.lora_linear import patch_lora_linears
from loraft.kernels.trained_rows import patch_trained_rows
from loraft.models.auto_model import meta_model
from loraft.models.load_model import LoadedModel
from loraft.models.model_structure import begin_at_mean, tables_of
from loraft.models.modules import matches, modules_of
from loraft.models.quantize import in_few_bits
from loraft.models.registry import ModelSpec, place_in
from loraft.tasks import TASKS

HARMLESS = (
    "`is_gradient_checkpointing` is deprecated",  # peft's own use of transformers
    "Model has `tie_word_embeddings=True`",  # training such an adapter is refused; loading one is told in a note
    "`lora_bias=True` was passed but the targeted layer",  # merging refuses it by itself
    "The following rank_pattern keys did not match any targeted module",  # nor a parameter, for it
    "The following alpha_pattern keys did not match any targeted module",
    "fan_in_fan_out is set to False but the target module is `Conv1D`",  # of a base that was in few bits
    "The PEFT config's `base_model_name_or_path` was renamed",  # resolving a target tells which base is used, and why
)
"""Warnings of peft that say nothing to the user."""


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A base with what is trained in it.

    Attributes:
        model: The model to run: peft's wrapper, or the base itself for `method: full`.
        targets: What the adapter trains; None for `method: full` and for an adapter that was loaded to be used.
        trainable: Every trained parameter by name, in the order of the names; all are float32.
        notes: What a person should know about it, one sentence each.
        names: The names of the adapters that are in the model, the one that acts first.
    """

    loaded: LoadedModel
    model: PeftModel | PreTrainedModel
    targets: TargetModules | None
    trainable: dict[str, nn.Parameter]
    method: Method
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = (ADAPTER_NAME,)

    def set_training(self, training: bool) -> None:
        """Switch dropout on for training, or off for everything else."""
        self.model.train(training)


def attach(loaded: LoadedModel, config: RunConfig, whole: Whole = nullcontext) -> AdaptedModel:
    """Make what the config's method trains trainable, and nothing else; `whole` is entered to look at weights.

    The start of an adapter is a function of `config.seed` alone: not of the device, the dtype of the base, or what
    was drawn before; and the global random state is left as it was.

    Raises:
        AdapterError: If a target, layer or pattern matches nothing, or `lora.start_from` is another adapter.
    """
    _begin_anew(loaded.model, loaded.new_modules, config.seed)
    if config.method == "full":
        return _attach_nothing(loaded)
    base = loaded.model
    head = TASKS[config.task].head(loaded.family)
    tokens = loaded.new_tokens
    targets = targets_in(base, loaded.family, config.lora, quantized=in_few_bits(base), head=head, tokens=tokens)
    classes = (base.config.id2label or {}).values() if head else ()
    start = start_of(config.lora, targets, tuple(map(str, classes)))
    lora = _lora_config(base, loaded.family, targets, config)
    lora.lora_bias = start is not None and start.config.lora_bias
    saved = copy.copy(lora.modules_to_save)
    with magnitudes_of(whole):
        model = add_lora_layers(base, lora)
    _refuse_other_modules(model, targets)
    refuse_loose_rows(model, targets.rows)
    notes: tuple[str, ...] = ()
    if start:
        notes = start.check_base(loaded.fingerprint)
        insert(model, start, ADAPTER_NAME)
    else:
        _initialise(model, targets, config)
        begin_rows(model, targets.rows)
        if config.lora.init in ("pissa", "olora", "loftq"):
            begin_from_weights(model, targets.modules, config.lora.init, config.seed, loaded)
    patch_lora_linears(model, ADAPTER_NAME, loaded.family.same_input)
    recorded = lora_config_of(model)
    recorded.base_model_name_or_path = loaded.name
    recorded.modules_to_save = saved  # peft added all that it calls a classifier, what this model has not too
    recorded.revision = config.model.revision
    recorded.rank_pattern, recorded.alpha_pattern = lora.rank_pattern, lora.alpha_pattern  # as they were written
    as_plain(recorded, config.lora.init if start is None else "default")
    return AdaptedModel(loaded, model, targets, trained_parameters(model), config.method, notes)


def add_lora_layers(
    base: PreTrainedModel | PeftModel, config: LoraConfig, name: str = ADAPTER_NAME, *, where: str | None = None
) -> PeftModel:
    """The base with adapter layers in it, beside those it has: parameters float32, peft's casting of inputs off.

    The values of the adapter are not yet decided; the global random state is left as it was. peft is to call it `name`,
    and `where` is the file that declares it.

    Raises:
        AdapterError: An expression of the config cannot be used.
    """
    inner = base.get_base_model() if isinstance(base, PeftModel) else base
    parameters = [name for name, _ in inner.named_parameters() if matches(name, *(config.target_parameters or ()))]
    config = resolved(config, [module for module, _ in inner.named_modules()], where, parameters)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        if isinstance(base, PeftModel):
            base.add_adapter(name, config)
            model = base
        else:
            model = get_peft_model(base, config, adapter_name=name)
    if config.bias != "none":
        keep_biases(model, name)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for layer in modules_of(model, LoraLayer).values():
        layer.cast_input_dtype_enabled = False
    norms_from_factors(model, name)
    _keep_dtype_of_base(model, name, dora=config.use_dora)
    wrap_packed(model)
    patch_trained_rows(model)
    model.train(base.training)  # peft's new layers begin in training mode, whatever the base is in
    return model


def _keep_dtype_of_base(model: PeftModel, name: str, *, dora: bool) -> None:
    """Cast what peft gives in float32, which would flow through all layers: DoRA over few bits, embeddings whole."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and dora and is_quantized(module.get_base_layer()):
            module.register_forward_hook(lambda _, given, output: output.to(product_dtype(given[0])))
        elif isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            base, whole = module.original_module, module.modules_to_save[name]
            if isinstance(base, nn.Embedding):
                whole.register_forward_hook(lambda _, __, output, dtype=base.weight.dtype: output.to(dtype))


def _attach_nothing(loaded: LoadedModel) -> AdaptedModel:
    """Every weight of the base is trained, in float32; positions that are sines and cosines are no weights."""
    model: PreTrainedModel = loaded.model.float()  # type: ignore[no-untyped-call]
    as_made = dict(meta_model(model.config).named_parameters())
    for name, weight in model.named_parameters():
        weight.requires_grad_(as_made[name].requires_grad)
    for table in tables_of(model).values() if loaded.new_tokens else ():
        begin_at_mean(table.data, loaded.new_tokens, min(loaded.new_tokens))
    return AdaptedModel(loaded, model, None, trained_parameters(model), "full")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model that are trained, in the order of their names."""
    return dict(sorted((name, weight) for name, weight in model.named_parameters() if weight.requires_grad))


def _begin_anew(model: PreTrainedModel, modules: Iterable[str], seed: int) -> None:
    """Draw the weights of new modules, on the CPU and in float32: a function of the seed alone.

    Source: W ~ N(0, σ²) with the config's `initializer_range` as σ, and b = 0, as transformers begins linear modules.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = float(getattr(model.config, "initializer_range", 0.02))
    for name in modules:
        for parameter in model.get_submodule(name).parameters():
            drawn = torch.zeros(parameter.shape)
            if parameter.dim() > 1:
                nn.init.normal_(drawn, std=spread, generator=generator)
            parameter.data.copy_(drawn)


def _initialise(model: PeftModel, targets: TargetModules, config: RunConfig) -> None:
    """Draw every A anew, on the CPU and in float32; B is zero, so that training starts from the base.

    peft draws A from the global state and rounds it to the dtype of the base before it makes it float32.

    Source: A ~ U(-1/√in, 1/√in) (Kaiming with a = √5), or A ~ N(0, 1/r²) for gaussian; Hu et al. 2021 and peft.
    """
    generator = torch.Generator().manual_seed(config.seed)
    base: Any = model.get_base_model()
    places = {of.name: place for place, of in adapted_parameters(model).items()}
    for name in (*targets.modules, *(places[weight.name] for weight in targets.weights)):
        layer = base.get_submodule(name)
        weight = layer.lora_A[ADAPTER_NAME].weight
        drawn = torch.empty(weight.shape, dtype=torch.float32)
        if config.lora.init == "gaussian":
            nn.init.normal_(drawn, std=1 / layer.r[ADAPTER_NAME], generator=generator)
        else:
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        weight.data.copy_(drawn)


def _lora_config(base: PreTrainedModel, family: ModelSpec, targets: TargetModules, config: RunConfig) -> LoraConfig:
    """The config's section in peft's words."""
    lora = config.lora
    everything = [name for name, _ in base.named_modules()]
    names, indices, pattern = _portable_names(targets, everything, family)
    return LoraConfig(
        task_type=TaskType(TASKS[config.task].peft_type),
        r=lora.r,
        lora_alpha=_whole(lora.alpha),  # type: ignore[arg-type]  # peft divides by r, and takes any number
        lora_dropout=lora.dropout,
        target_modules=names,
        layers_to_transform=indices,
        layers_pattern=pattern,
        target_parameters=_portable_parameters(targets, base, lora) or None,
        bias=lora.bias,
        modules_to_save=_unmistakable(targets.saved, everything) or None,
        trainable_token_indices=as_indices(targets.rows, everything),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern={pattern: _whole(alpha) for pattern, alpha in lora.alpha_pattern.items()},
        init_lora_weights="gaussian" if lora.init == "gaussian" else True,
        fan_in_fan_out=any(isinstance(base.get_submodule(name), Conv1D) for name in targets.modules),
    )


def lora_config_of(model: PeftModel) -> LoraConfig:
    """The config of the adapter that is trained."""
    config = model.peft_config[ADAPTER_NAME]
    assert isinstance(config, LoraConfig)
    return config


def _whole(number: float) -> float | int:
    """A whole number as an int: some servers read `lora_alpha` as one."""
    return int(number) if number == int(number) else number


def _portable_names(
    targets: TargetModules, everything: Sequence[str], family: ModelSpec
) -> tuple[list[str], list[int] | None, str | None]:
    """The shortest `target_modules`, `layers_to_transform` and `layers_pattern` that mean exactly the chosen modules.

    Short names can be read, and fit a model of another depth; full names are the last resort, where two stacks are
    adapted in different layers.
    """
    last = sorted({name.rpartition(".")[2] for name in targets.modules})
    inside = sorted({place_in(family.stacks, name).inside for name in targets.modules})
    chosen = set(targets.modules)
    for names in (last, inside):
        meant = {name for name in everything if matches(name, *names)}
        if meant == chosen:
            return names, None, None
        for pattern in _layer_patterns(family):
            if {name for name in meant if _layer_index(name, pattern) in targets.layers} == chosen:
                return names, list(targets.layers), pattern
    return list(targets.modules), None, None


def _portable_parameters(targets: TargetModules, base: PreTrainedModel, lora: LoraSection) -> list[str]:
    """The names of adapted parameters as they were written, where they mean these alone; else in full."""
    chosen = {weight.name for weight in targets.weights}
    inside = sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in chosen})
    for names in (list(lora.target_parameters), inside):
        meant = {name for name, _ in base.named_parameters() if matches(name, *names)}
        if meant == chosen:
            return names
    return sorted(chosen)


def _layer_patterns(family: ModelSpec) -> list[str]:
    """What `layers_pattern` can say: the layers of any stack, such as `block`, or of one, such as `encoder.block`."""
    split = [path.rpartition(".") for path in family.stacks.values()]
    either = list(dict.fromkeys(last for _, _, last in split))
    if len(split) == 1:
        return either
    return [*either, *(f"{before.rpartition('.')[2]}.{last}" for before, _, last in split)]


def _layer_index(name: str, pattern: str) -> int | None:
    """The layer of a module by a `layers_pattern`, as peft finds it; None where it has none."""
    found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name)
    return int(found[1]) if found else None


def _unmistakable(saved: Sequence[str], everything: Sequence[str]) -> list[str]:
    """Names for `modules_to_save`, which peft compares by the end of the text: `norm` would mean `input_layernorm`."""
    short = [name.rpartition(".")[2] for name in saved]
    meant = {name for name in everything if name.endswith(tuple(short))} if short else set()
    return sorted(set(short)) if meant == set(saved) else list(saved)


def _refuse_other_modules(model: PeftModel, targets: TargetModules) -> None:
    """Compare what peft adapted with what was chosen: it ignores names that match nothing when others match."""
    base = model.get_base_model()
    layers = modules_of(base, LoraLayer).keys() - modules_of(base, ParamWrapper).keys()
    parameters = {of.name for of in adapted_parameters(model).values()}
    for found, chosen in (
        (layers, targets.modules),
        (set(modules_of(base, ModulesToSaveWrapper)), targets.saved),
        (parameters, [weight.name for weight in targets.weights]),
        (wrapped_rows(model), targets.rows),
    ):
        if found != set(chosen):
            differing = ", ".join(sorted(found.symmetric_difference(chosen))[:5])
            raise RuntimeError(f"peft adapted other modules than were chosen: {differing}")
