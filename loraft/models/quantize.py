"""How a base's frozen weights are stored in 4 or 8 bits.

Every linear module is quantized but the head; embeddings and norms are not linear modules, and stay in the model's
dtype, as the QLoRA paper has it. transformers quantizes nothing else, and has a place for quantizers of others: the one
here takes tensors of experts too, each as soon as it is read, so that no more than one of them is held in 16 bits.

Source: Dettmers et al. 2023, QLoRA, section 3 (https://arxiv.org/abs/2305.14314).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from loraft.config.sections import QuantizationSection
from loraft.errors import ModelError
from loraft.kernels.linear_weights import is_quantized, product_dtype, unpacked
from loraft.kernels.packed_experts import BLOCK, CONSTANTS_BLOCK, PackedExperts, hold, is_packable, let_go, pack
from loraft.models.device import DTYPES, NO_FLOAT16, DeviceConfig
from loraft.models.model_structure import expert_tensors
from loraft.models.modules import linear_modules, modules_of
from loraft.models.registry import ModelSpec

NOT_QUANTIZED = ("lm_head", "score", "classifier", "pre_classifier", "pooler", "dt_proj")
"""The modules, by a part of their name, whose linear modules keep the model's dtype: heads, and Mamba's, whose kernel
reads the weight itself."""

WITH_EXPERTS = "loraft_4bit_experts"
"""What transformers calls that quantizer."""

# At import bitsandbytes warns that an inference kernel is missing; `make_trainable` turns that kernel off.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def quantized_bytes(parameters: int, rows: int, quantization: QuantizationSection | None) -> int:
    """The bytes of quantized weights with their constants.

    In 4 bits half a byte a number, and for each block of 64 a float32 constant; double quantization makes it one byte
    and a float32 for each 256 constants. In 8 bits a byte a number, and a float32 for each of the `rows` of weights.

    Source: Dettmers et al. 2023, QLoRA, section 3 (https://arxiv.org/abs/2305.14314); Dettmers et al. 2022, LLM.int8().
    """
    if quantization is None:
        return 0
    if quantization.bits == 8:
        return parameters + 4 * rows
    blocks = parameters / BLOCK
    constants = blocks * (1 + 4 / CONSTANTS_BLOCK) if quantization.double_quant else 4 * blocks
    return int(parameters / 2 + constants)


def compute_dtype(section: QuantizationSection | None, placement: DeviceConfig) -> torch.dtype:
    """The dtype of products with quantized weights: that of the model where nothing else is said.

    Raises:
        ModelError: It does not train on this device.
    """
    if section is None or section.compute_dtype == "auto":
        return placement.dtype
    if section.compute_dtype == "float16" and placement.device == "cpu":
        raise ModelError(NO_FLOAT16, key="quantization.compute_dtype", remedy="Use bfloat16 or auto.")
    return DTYPES[section.compute_dtype]


def quantization_config(
    section: QuantizationSection,
    compute: torch.dtype,
    skeleton: nn.Module,
    experts: Sequence[str] = (),
    through: str | None = None,
) -> BitsAndBytesConfig:
    """The config of bitsandbytes, by the names of transformers, for a model of which `skeleton` is on the meta device.

    Storage is uint8: two weights a byte. What keeps its dtype is named in full: transformers compares beginnings and
    ends of names, and would quantize the `dense` inside a pooler. So are the tensors of `experts` that do not.
    `through` is a device that quantizes for the host, one tensor after the other.
    """
    quantized = set(quantizable_modules(skeleton))
    kept = [name for name in linear_modules(skeleton) if name not in quantized]
    if section.type == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)  # type: ignore[no-untyped-call]
    return ExpertsConfig(
        experts,
        through,
        load_in_4bit=True,
        bnb_4bit_quant_type=section.type,
        bnb_4bit_use_double_quant=section.double_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_skip_modules=kept,
    )


def quantizable_modules(model: nn.Module) -> tuple[str, ...]:
    """As `quantized_modules`, of an architecture that leaves its weights as they are.

    Raises:
        ModelError: It changes them while it answers, as RWKV does.
    """
    inner: Any = getattr(model, "base_model", None)
    if hasattr(inner, "_rescale_layers"):
        kind = f"model type {inner.config.model_type!r} rescales its weights while it answers"
        message = f"{kind}, and quantized ones stay as they are"
        raise ModelError(message, key="method", remedy="Write method: lora.")
    return quantized_modules(model)


def quantized_modules(model: nn.Module) -> tuple[str, ...]:
    """The full names of the linear modules that quantizing replaces; of a model on the meta device too.

    Those that an architecture keeps in float32 (T5's `wo`) are left alone, as transformers leaves them.
    """
    kept = (*NOT_QUANTIZED, *(getattr(model, "_keep_in_fp32_modules", None) or ()))
    return tuple(name for name in linear_modules(model) if not set(name.split(".")).intersection(kept))


def experts_in_4_bits(model: nn.Module, family: ModelSpec, section: QuantizationSection | None) -> tuple[str, ...]:
    """The tensors of experts that are stored in 4 bits where a model's weights are; of one on the meta device too."""
    if section is None or section.bits != 4 or not section.experts or not family.packs_experts:
        return ()
    return tuple(name for name, weight in expert_tensors(model).items() if is_packable(weight.shape))


@register_quantization_config(WITH_EXPERTS)
class ExpertsConfig(BitsAndBytesConfig):
    """bitsandbytes' config, with the names of the tensors of experts that are quantized too.

    `through` is the device that quantizes what is loaded to the host; None quantizes where it is loaded to.
    """

    def __init__(self, experts: Iterable[str] = (), through: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)  # type: ignore[no-untyped-call]
        self.quant_method = WITH_EXPERTS  # type: ignore[assignment]
        self.experts, self.through = tuple(experts), through


@register_quantizer(WITH_EXPERTS)
class ExpertsQuantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' quantizer, for experts too."""

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **others: Any) -> bool:
        """Whether a tensor is quantized once it is read."""
        config: Any = self.quantization_config
        return param_name in config.experts or bool(super().param_needs_quantization(model, param_name, **others))

    def get_quantize_ops(self) -> PackExperts:
        """What quantizes a tensor."""
        return PackExperts(self)  # type: ignore[no-untyped-call]


class PackExperts(Bnb4bitQuantize):
    """Quantizes a tensor of experts, and leaves all others to transformers."""

    def convert(self, input_dict: dict[str, Any], **others: Any) -> dict[str, Any]:  # type: ignore[override]
        """What stands in the model for tensors that were read, by their full names."""
        config, model, result = self.hf_quantizer.quantization_config, others["model"], dict[str, Any]()
        for name, read in input_dict.items():
            weight = read[0] if isinstance(read, list) else read
            if name in config.experts:
                module, _, leaf = name.rpartition(".")
                owner = model.get_submodule(module)
                dtype: torch.dtype = owner.get_parameter(leaf).dtype
                kind, double = config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant
                hold(owner, leaf, pack(weight.to(dtype), kind, double_quant=double))
                result[name] = owner.get_parameter(leaf)
            elif config.through is None:
                result |= super().convert({name: weight}, **others)
            else:
                made = super().convert({name: weight.to(config.through)}, **others)
                result |= {each: parameter.to("cpu") for each, parameter in made.items()}
        return result


def make_trainable(model: nn.Module, compute: torch.dtype) -> None:
    """Have quantized modules give right gradients on a CPU, and compute in the dtype of autocast where it is on.

    Where the CPU has AVX512-BF16, the first forward in eval mode repacks each weight for a kernel without a backward,
    `.train()` does not undo it, and gradients are wrong from then on without a word. And on CUDA autocast lets norms
    give float32, which bitsandbytes would give back, and models do not expect it beside products in 16 bits.
    A bias stays as it is. Modules in 8 bits get products of our own, in `compute`.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    from loraft.kernels.cpu_dequantize import read_blocks_across_rows
    from loraft.kernels.int8_linear import Int8Linear
    from loraft.kernels.linear_4bit import Biased4bitLinear

    read_blocks_across_rows()

    def cast_input(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (x,) = inputs
        return (x.to(product_dtype(x)),)

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            module.register_forward_pre_hook(cast_input)
            if module.bias is not None:
                module.__class__ = Biased4bitLinear
        elif isinstance(module, Linear8bitLt):
            in_8_bits: Any = module
            in_8_bits.__class__, in_8_bits.compute_dtype = Int8Linear, compute


def cast_others(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model that was quantized in its files the dtype that was asked for, where it is not quantized.

    transformers leaves such a model every tensor in the dtype of its file.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for name, parameter in model.named_parameters():
        # Numbers in 4 bits may lie in a tensor that pretends to hold floats.
        if parameter.is_floating_point() and not hasattr(parameter, "quant_state") and not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)


def in_few_bits(model: nn.Module) -> tuple[str, ...]:
    """The full names of the modules of a loaded model that are quantized."""
    linear = (name for name, module in model.named_modules() if is_quantized(module))
    return (*linear, *modules_of(model, PackedExperts))


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a frozen model compute in another dtype, with the very numbers that its weights stand for in training.

    Its quantized modules become ordinary ones: left as they are, products without a gradient in 4 bits would skip the
    rounding to the dtype that they were quantized from, which those of training have.
    """
    for name, module in list(model.named_modules()):
        if is_quantized(module):
            model.set_submodule(name, ordinary(module, unpacked(module)))
    for experts in modules_of(model, PackedExperts).values():
        let_go(experts, dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def ordinary(module: nn.Linear, weight: torch.Tensor) -> nn.Linear:
    """A frozen linear module in place of a quantized one, with its bias and another weight `[out, in]`."""
    linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = module.bias
    return linear.train(module.training)
