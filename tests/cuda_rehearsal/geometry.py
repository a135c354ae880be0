"""A process of its own that trains two steps of models of a real size, without their numbers, and tells what was held.

`python -m tests.cuda_rehearsal.geometry LIBRARY OUTPUT RUN…`, of which each is `NAME METHOD CHECKPOINTING TOKENS
[KEY=VALUE…]`. Among the keys `gpu` is the memory of the device in bytes. Each is tried in a fork, to import once.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

if __name__ == "__main__":  # before torch is imported, which remembers that there is no CUDA
    ctypes.CDLL(sys.argv[1])

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from loraft.config.choices import Checkpointing
from loraft.config.schema import RunConfig
from loraft.kernels.layer_stream import LayerStream
from loraft.models.device import CUDA_TAKES
from loraft.models.load_model import LoadedModel
from loraft.models.model_structure import ends_of, layers_of
from loraft.models.quantize import quantized_modules
from loraft.planning.run_plan import RunPlan, plan_run
from loraft.training import built_model
from loraft.training.run_dir import RunFolder
from loraft.training.train_step import Throughput, Trainer, take_step
from tests.cuda_rehearsal.device import CUDA, rehearsal
from tests.cuda_rehearsal.pretend import leave, pretend, quantized_parameter
from tests.tiny import tiny_tokenizer
from tests.training.building import write_rows

GEOMETRIES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    },
    "llama-3.1-8b-4-layers": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 4, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 1000, "max_position_embeddings": 131072,
    },
    "llama-2-13b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40, "vocab_size": 32000, "max_position_embeddings": 4096,
    },
    "llama-33b": {
        "hidden_size": 6656, "intermediate_size": 17920, "num_hidden_layers": 60, "num_attention_heads": 52,
        "num_key_value_heads": 52, "vocab_size": 32000, "max_position_embeddings": 2048,
    },
    "llama-65b": {
        "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 64, "vocab_size": 32000, "max_position_embeddings": 2048,
    },
    "llama-2-70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096,
    },
}  # fmt: skip
STEPS = 2
KEPT: Mapping[str, Checkpointing] = {"on": True, "off": False, "offload": "offload"}


def write_model(folder: Path, sizes: dict[str, Any]) -> None:
    """A folder of a model whose file has the names and shapes of its tensors, and no numbers: a hole."""
    config = LlamaConfig(**sizes, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    header, at = {}, 0
    for name, parameter in model.named_parameters():
        end = at + 2 * parameter.numel()
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [at, end]}
        at = end
    written = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(8 + len(written) + at)


def on_device(model: PreTrainedModel, *, in_4_bits: bool, but: str | None = None) -> None:
    """Give a model on the meta device tensors of the device, quantized where QLoRA has them so.

    The matrices inside the module `but` stay on the meta device, in place of the host.
    """
    import bitsandbytes as bnb

    names = set(quantized_modules(model)) if in_4_bits else set()
    for name, module in list(model.named_modules()):
        stays = but is not None and name.startswith(but)
        for of, made in ((module._parameters, _frozen), (module._buffers, _empty)):
            for key, tensor in of.items():
                if tensor is not None and not (stays and made is _frozen and tensor.dim() > 1):
                    of[key] = made(tensor)  # type: ignore[index,assignment]
        if name in names:
            linear: Any = module
            sizes = linear.in_features, linear.out_features
            quantized = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.bfloat16, device="meta")
            as_was = vars(quantized.weight) | {"quant_type": "nf4", "compress_statistics": True}
            weight = quantized_parameter(linear.weight.data, as_was | {"quant_storage": torch.uint8}, bnb.functional)
            quantized._parameters["weight"] = weight
            del linear._parameters["weight"]
            model.set_submodule(name, quantized)


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(_empty(tensor), requires_grad=False)


def loaded(plan: RunPlan) -> LoadedModel:
    """The planned model as `load_model` gives it."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(plan.config.model.name_or_path))
    model = model.to(torch.bfloat16)
    in_4_bits, family, stream = plan.config.method == "qlora", plan.shape.family, None
    streamed = plan.config.model.stream_layers
    on_device(model, in_4_bits=in_4_bits, but=family.layers_path if streamed else None)
    if streamed:
        ends = ends_of(model) if plan.shape.ends else None
        for end in ends[:2] if ends else ():
            there = torch.empty(end.weight.shape, dtype=torch.bfloat16, device="meta")
            end._parameters["weight"] = nn.Parameter(there, requires_grad=False)
        stream = LayerStream(model, layers_of(model, family), CUDA, ends)
    if in_4_bits:
        model.is_loaded_in_4bit = model.is_quantized = True  # type: ignore[assignment]
    model.requires_grad_(False).eval()
    tokenizer: Any = plan.data.renderer.tokenizer
    return LoadedModel(
        model=model, tokenizer=tokenizer, family=family, placement=plan.placement,
        folder=Path(plan.config.model.name_or_path), name="x", fingerprint="x", notes=(), stream=stream,
    )  # fmt: skip


def held(
    folder: Path, name: str, method: str, *, checkpointing: Checkpointing, tokens: int, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The bytes that were held at most, those that were predicted, and how many kernels were launched."""
    (folder / "model").mkdir()
    write_model(folder / "model", GEOMETRIES[name])
    write_rows(folder / "train.jsonl", [{"text": "z" * tokens}] * STEPS)
    sections: dict[str, dict[str, Any]] = {"model": {}, "lora": {}, "training": {}}
    for key, value in more.items():
        section, _, leaf = key.partition(".")
        sections[section][leaf] = value
    config = RunConfig.model_validate({
        "method": method, "model": {"name_or_path": str(folder / "model"), "dtype": "bfloat16"} | sections["model"],
        "lora": {"r": 16, "alpha": 32} | sections["lora"],
        "data": {"train": str(folder / "train.jsonl"), "eval": None, "max_length": tokens, "on_overlength": "truncate"},
        "training": {
            "output_dir": str(folder / "run"), "max_steps": STEPS, "per_device_train_batch_size": 1,
            "gradient_checkpointing": checkpointing, "optim": "adamw",
        } | sections["training"],
    })  # fmt: skip
    with rehearsal() as ledger:
        plan = plan_run(config)
        built_model.load_model = lambda *_, **__: loaded(plan)
        adapted = built_model.build_model(plan)
        run = Trainer(plan, RunFolder(folder / "run"), adapted, str, lambda _: None, [])
        adapted.set_training(True)
        windows = plan.batches.windows(plan.data.train, 0, 0, (0, 0))
        weights = ledger.live
        for step, window in enumerate(islice(windows, STEPS), 1):
            prepared = run.prepare(window)
            with ledger.since() as found:
                take_step(run, step, prepared, Throughput(0))
    return {
        "weights": weights, "peak": found.peak, "predicted": plan.memory.as_dict(),
        "copies": sum(found.copies.values()), "host": stream.host_bytes if (stream := adapted.loaded.stream) else 0,
        "launches": sum(found.launches.values()), "waits": sum(found.waits.values()),
    }  # fmt: skip


def tried(run: str) -> dict[str, Any]:
    """What was held in a run, in this process."""
    name, method, checkpointing, tokens, *more = run.split()
    keys = {key: json.loads(value) for key, _, value in (each.partition("=") for each in more)}
    memory = keys.pop("gpu", None)
    pretend(*((memory, memory - CUDA_TAKES) if memory else ()))
    with tempfile.TemporaryDirectory() as place:
        os.environ["LORAFT_CACHE"] = str(Path(place) / "cache")
        return held(Path(place), name, method, checkpointing=KEPT[checkpointing], tokens=int(tokens), more=keys)


def main() -> None:
    """Write what was held in each run as JSON."""
    output, found = Path(sys.argv[2]), {}
    for run in sys.argv[3:]:
        if (child := os.fork()) == 0:
            output.write_text(json.dumps(tried(run)))
            leave()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, run
        found[run] = json.loads(output.read_text())
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    leave()
