"""What else has to be taken for a CUDA that is there: torch's questions to it, and the libraries' ways around it."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.nn.utils import clip_grad

from loraft.kernels.fused import capped_rows, fuse
from tests.cuda_rehearsal.device import FakeCuda, FakeGraph, pinned_from_now_on, recording
from tests.cuda_rehearsal.flex import flex_attention

aten = torch.ops.aten
NAME, CAPABILITY, TOTAL_GIB, FREE_GIB = "a GPU that is not there", (9, 0), 80, 79


def pretend(total: int = TOTAL_GIB << 30, free: int = FREE_GIB << 30) -> None:
    """Let this process take CUDA to be there: for good, so that it does nothing else."""
    import bitsandbytes  # noqa: F401 - before CUDA is there: its kernels cannot be

    _answer_for_cuda(total, free)
    torch.cuda.CUDAGraph, torch.cuda.graph = FakeGraph, recording  # type: ignore[misc,assignment]
    torch.Tensor.pin_memory = _pinned  # type: ignore[method-assign,assignment]
    FakeTensor.tolist = lambda self: self.cpu().tolist()  # type: ignore[method-assign]  # in one go, as CUDA has it
    nn.Module._apply = _apply  # type: ignore[method-assign]
    at = torch.UntypedStorage.data_ptr
    torch.UntypedStorage.data_ptr = lambda self: self._cdata if self.device.type != "cpu" else at(self)  # type: ignore[method-assign]
    FakeTensor.data_ptr = lambda self: self.untyped_storage()._cdata + self.storage_offset() * self.element_size()
    _attend()
    _quantize_plainly()
    _dequantize_plainly()
    fuse.faults = _always({})  # type: ignore[assignment]  # there are no numbers to try a kernel by
    fuse.capped_fault, capped_rows.compiled = _always(None), _always(flex_attention)  # type: ignore[assignment]
    clip_grad._has_foreach_support = _always(True)  # it looks at the type of the tensors


def leave() -> NoReturn:
    """End this process, whose work is done and written, at once.

    torch has a thread for the backward pass of a GPU, which lets go of the modes of `rehearsal` after who waited for
    the gradient has gone on. When Python ends meanwhile, it ends a thread that asks for it by unwinding its stack, on
    which destructors of C++ stand, and the process aborts: "terminate called without an active exception".
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """The kernel that torch chooses on CUDA: flash attention in 16 bits, unless there is a mask."""
    if attn_mask is None and query.dtype != torch.float32 and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if query.shape[1] != key.shape[1]:
        key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], 1) for each in (key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    gradient = any(each.requires_grad for each in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, gradient, dropout_p, is_causal, scale=scale
    )[0]


def _answer_for_cuda(total: int, free: int) -> None:
    properties = SimpleNamespace(
        name=NAME, major=CAPABILITY[0], minor=CAPABILITY[1], multi_processor_count=132, total_memory=total
    )
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "get_device_name": NAME,
        "get_device_capability": CAPABILITY, "get_device_properties": properties, "is_bf16_supported": True,
        "mem_get_info": (free, total), "memory_reserved": 0, "memory_allocated": 0,
        "max_memory_allocated": 1, "reset_peak_memory_stats": None, "synchronize": None, "empty_cache": None,
        "get_rng_state_all": [], "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
        "is_current_stream_capturing": False,
        "get_sync_debug_mode": 0, "_lazy_init": None, "manual_seed_all": None, "_is_in_bad_fork": False,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, _always(answer))
    torch.cuda.set_sync_debug_mode = _refuse_waits
    torch.cuda.Stream = SideStream  # type: ignore[misc,assignment]
    torch.cuda.current_stream = _always(SideStream(torch.device("cuda", 0)))
    torch.cuda.stream = _always(nullcontext())


def _refuse_waits(mode: int | str) -> None:
    """In the place of `torch.cuda.set_sync_debug_mode`."""
    assert FakeCuda.current is not None
    FakeCuda.current.ledger.refuses = mode == "error"


class SideStream:
    """A stream of the device: nothing of it is waited for by the host, and in what order is not rehearsed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, _: SideStream) -> None:
        """What is launched here from now on runs after what was launched there."""

    def record_event(self) -> None:
        """What others wait for."""

    def wait_event(self, _: None) -> None:
        """What is launched here from now on runs after an event."""


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *_, **__: answer


def _pinned(tensor: Tensor, *_: Any) -> Tensor:
    """A copy that is known to lie in pinned memory."""
    return pinned_from_now_on(tensor.clone())


_plain_apply = nn.Module._apply
BECAME = "_became_in_rehearsal"


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which would set the data of a parameter to a tensor of another device."""
    for child in module.children() if recurse else ():
        _apply(child, change)
    there = {name: each for name, each in module._parameters.items() if isinstance(each, FakeTensor)}
    names = list(module._parameters)
    module._parameters = {name: each for name, each in module._parameters.items() if name not in there}
    _plain_apply(module, change, recurse=False)
    found = module._parameters | {name: _changed(each, change) for name, each in there.items()}
    module._parameters = {name: found[name] for name in names}
    return module


def _changed(parameter: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Another parameter, the same for all modules that share this one; this one where nothing changes."""
    with torch.no_grad():
        made = change(parameter)
    if made is parameter:
        return parameter
    known = getattr(parameter, BECAME, None)
    if known is None or (known.dtype, known.device) != (made.dtype, made.device):
        known = nn.Parameter(made, parameter.requires_grad)
        setattr(parameter, BECAME, known)
    return known


def _attend() -> None:
    """Let attention take the kernel that CUDA has for it: layers that are recomputed too, which no mode sees."""
    plain = functional.scaled_dot_product_attention

    def attend(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (attention if isinstance(query, FakeTensor) else plain)(query, *args, **kwargs)

    for module in list(sys.modules.values()):
        if getattr(module, plain.__name__, None) is plain:
            setattr(module, plain.__name__, attend)


def _quantize_plainly() -> None:
    """Quantize into parameters: `Params4bit` of transformers  holds no tensor without numbers."""
    import bitsandbytes.functional as bnb
    from transformers.integrations import bitsandbytes as integration
    from transformers.quantizers.quantizers_utils import get_module_from_name

    def convert(_self: Any, given: Any, full_layer_name: Any = None, model: Any = None, **_: Any) -> dict[str, Any]:
        made = {}
        for name, value in given.items():
            weight = value[0] if isinstance(value, list) else value
            module, _ = get_module_from_name(model, name)
            if module.source_cls.__name__ == "Conv1D":
                weight = weight.T
            as_was = vars(model.get_parameter_or_buffer(name))
            made[name] = quantized_parameter(weight, as_was, bnb)
            module._is_hf_initialized = True
        return made

    integration.Bnb4bitQuantize.convert = convert  # type: ignore[method-assign]


def quantized_parameter(weight: Tensor, as_was: dict[str, Any], bnb: Any) -> nn.Parameter:
    """A weight in 4 bits, with the attributes of the `Params4bit` that it takes the place of."""
    codes, state = bnb.quantize_4bit(
        weight.contiguous(), blocksize=as_was.get("blocksize") or 64, quant_type=as_was["quant_type"],
        compress_statistics=as_was["compress_statistics"], quant_storage=as_was["quant_storage"],
    )  # fmt: skip
    made = nn.Parameter(codes, requires_grad=False)
    attributes = {name: value for name, value in as_was.items() if name != "_is_hf_initialized"}
    attributes |= {"quant_state": state, "bnb_quantized": True}
    itself = weakref.ref(made)  # no cycle: what is let go is free at once, as on the device
    vars(made).update(attributes, to=lambda device, *_, **__: _brought(itself(), attributes, device))
    return made


def _brought(made: Any, attributes: dict[str, Any], device: str) -> nn.Parameter:
    """A weight in 4 bits on another device, with its constants, as `Params4bit.to` gives it."""
    if made.device.type == torch.device(device).type:
        return cast("nn.Parameter", made)
    attributes["quant_state"].to(device)
    other = nn.Parameter(made.data.to(device), requires_grad=False)
    vars(other).update(attributes)
    return other


def _dequantize_plainly() -> None:
    """Let peft dequantize such a parameter, which is not of the class that it asks for."""
    import bitsandbytes.functional as bnb
    from peft.utils import integrations

    def instead(plain: Callable[..., Tensor], weight_of: Callable[[Any], Any]) -> None:
        def dequantize(given: Any, state: Any = None) -> Tensor:
            weight = weight_of(given)
            if getattr(weight, "quant_state", None) is not None:
                return bnb.dequantize_4bit(weight.data, weight.quant_state)
            return plain(given) if state is None else plain(given, state)

        for module in list(sys.modules.values()):
            if getattr(module, plain.__name__, None) is plain:
                setattr(module, plain.__name__, dequantize)

    instead(integrations.dequantize_bnb_weight, lambda weight: weight)
    instead(integrations.dequantize_module_weight, lambda module: module.weight)
