"""How the base of a run is stored and where its head begins: what is decided of it, and what is said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from loraft.adapters.targets import TargetModules
from loraft.config.schema import RunConfig
from loraft.config.sections import QuantizationSection
from loraft.errors import ModelError
from loraft.figures import listed
from loraft.kernels.fused.fuse import gated_parts
from loraft.kernels.layer_stream import uses_of_parameters
from loraft.models.base_files import ModelInFiles
from loraft.models.hf_config import class_names, heads_in, is_classifier
from loraft.models.load_model import load_any_config
from loraft.models.model_structure import ends_of, placed_layers
from loraft.models.modules import hidden_in, is_within, linear_modules
from loraft.models.quantize import experts_in_4_bits, quantizable_modules
from loraft.models.registry import ModelSpec, place_in
from loraft.models.safetensors_index import TensorHeader
from loraft.models.sources import ModelHandle
from loraft.models.stored_weights import StoredWeights, refuse_another_quantization
from loraft.planning.update_sizes import PLAIN, UpdateSizes

WRITTEN_OUT = ("NewGELUActivation", "FastGELUActivation", "QuickGELUActivation")
"""transformers' activation functions that are no single kernel of torch."""
MOST_NAMED = 3
"""The most tensors that a note names."""


@dataclass(frozen=True)
class LayerSizes:
    """What one transformer layer's activations are made of.

    Attributes:
        linear_outputs: The out-features of the layer's linear modules, summed.
        mlp_outputs: Those of them that are the feed-forward part's, where that can be computed in tiles; else 0.
        inner: The width inside the feed-forward part: the widest in-features.
        gated: The feed-forward part multiplies its inner tensor by a second one.
        written_out: Its activation function is made of several operations, each of which keeps what it read.
        fuses: It is gated in the way that has a fused kernel on CUDA.
        products: The shapes of its linear modules' weights, each counted once.
    """

    hidden: int
    linear_outputs: int
    mlp_outputs: int
    inner: int
    gated: bool
    written_out: bool
    fuses: bool
    heads: int
    products: int = 0

    def inner_tensors(self, *, fused: bool) -> int:
        """Those that a feed-forward part keeps of its inner width, beside what its linear modules give."""
        return 1 + (self.gated and not (self.fuses and fused)) + 3 * self.written_out


@dataclass(frozen=True)
class StackSizes:
    """One stack of layers, and what it reads.

    Attributes:
        update: What is kept beside plain updates.
        graph_layers: Layers that keep activations: those from the first trained one up.
        batch_tokens: Tokens of the largest batch, padding included.
        tile: The tokens that a feed-forward part is computed for at a time; None where it is whole.
        lengths: How many numbers of positions batches have.
        attended_lengths: How many lengths of a line, or of blocks of rows that lie end to end, attention reads.
    """

    layer: LayerSizes
    graph_layers: int
    batch_tokens: int
    longest_row: int
    tile: int | None = None
    update: UpdateSizes = PLAIN
    lengths: int = 0
    attended_lengths: int = 0

    @property
    def in_tiles(self) -> bool:
        """Whether a feed-forward part is computed for fewer tokens than the batch has."""
        return self.tile is not None and self.layer.mlp_outputs > 0 and self.tile < self.batch_tokens

    @property
    def at_once(self) -> int:
        """The tokens that a feed-forward part is computed for at a time."""
        return self.tile if self.tile is not None and self.in_tiles else self.batch_tokens

    @property
    def inputs(self) -> int:
        """The numbers that go into the layers that keep activations."""
        return self.batch_tokens * self.layer.hidden * self.graph_layers

    def dropped(self, width: int, device: str) -> int:
        """The bytes that a layer keeps of each token to tell what dropout left of it.

        There are two hidden states, of which CUDA keeps a byte for each number; a CPU keeps numbers of `width` bytes,
        of the attention weights too.
        """
        hidden = 2 * self.layer.hidden
        return width * (hidden + self.layer.heads * self.longest_row) if device == "cpu" else hidden

    def of_a_tile(self, *, fused: bool) -> int:
        """The numbers that a feed-forward part keeps of one tile while that goes backward; 0 where it is whole."""
        layer = self.layer
        a_token = layer.mlp_outputs + layer.inner_tensors(fused=fused) * layer.inner
        return self.at_once * a_token if self.in_tiles else 0


@dataclass(frozen=True)
class FewBits:
    """What of a model is stored in few bits.

    Attributes:
        linear: The linear modules, with inputs and outputs.
        experts: The tensors of experts, with their shapes.
    """

    linear: Mapping[str, tuple[int, int]]
    experts: Mapping[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """How many numbers these are."""
        return sum(map(math.prod, (*self.linear.values(), *self.experts.values())))

    @property
    def rows(self) -> int:
        """The outputs of the linear modules."""
        return sum(outputs for _, outputs in self.linear.values())

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that hold them."""
        return (*self.linear, *dict.fromkeys(name.rpartition(".")[0] for name in self.experts))


def layer_sizes(model: PreTrainedModel, path: str, feed_forward: Collection[str]) -> LayerSizes:
    """The sizes of the first layer at `path`; `feed_forward` can be computed in tiles."""
    linear, layer = linear_modules(model), model.get_submodule(f"{path}.0")
    inside = [name for name in linear if name.startswith(f"{path}.0.")]
    outputs, inner = [linear[name][1] for name in inside], max(linear[name][0] for name in inside)
    return LayerSizes(
        hidden=hidden_in(model),
        linear_outputs=sum(outputs),
        mlp_outputs=sum(linear[name][1] for name in inside if is_within(name, *feed_forward)),
        inner=inner,
        gated=2 * inner in outputs or outputs.count(inner) > 1,
        written_out=any(type(part).__name__ in WRITTEN_OUT for part in layer.modules()),
        fuses=bool(gated_parts(layer)),
        heads=heads_in(model.config),
        products=len({linear[name] for name in inside}),
    )


def in_few_bits(
    base: ModelInFiles, family: ModelSpec, quantization: QuantizationSection | None, stored: StoredWeights | None
) -> FewBits:
    """What of a model is stored in few bits: what quantizing takes, or what its files have so."""
    if quantization is None:
        return FewBits({}, {})
    model, linear = base.model, linear_modules(base.model)
    quantized = base.packed_modules if stored is not None and base.has_weights else quantizable_modules(model)
    experts = experts_in_4_bits(model, family, quantization)
    shapes = {name: tuple(model.get_parameter(name).shape) for name in experts}
    return FewBits({name: linear[name] for name in quantized if name in linear}, shapes)


@dataclass(frozen=True)
class ExpertSizes:
    """Numbers of tensors of experts in a layer, of that with the most.

    Attributes:
        packed: Those that are dequantized while it computes.
        adapted: Those that get an update, which is added to all of a tensor.
        kept: Those whose sum with the update is kept for the backward pass.
    """

    packed: int
    adapted: int
    kept: int

    def beside(self, layers: int) -> int:
        """What is held beside the weights: those of one layer dequantized and with an update, and what layers keep."""
        return self.packed + self.adapted + self.kept * layers


def experts_of_a_layer(
    model: PreTrainedModel, family: ModelSpec, packed: Collection[str], targets: TargetModules | None
) -> ExpertSizes:
    """The sizes of the experts of a model on the meta device."""
    adapted = {weight.name for weight in targets.weights if weight.experts > 1} if targets else set()

    def most(names: Iterable[str]) -> int:
        sizes = Counter[tuple[str, int]]()
        for name in names:
            sizes[place_in(family.stacks, name)[:2]] += model.get_parameter(name).numel()
        return max(sizes.values(), default=0)

    return ExpertSizes(most(packed), most(adapted), most(adapted.difference(packed)))


def matrices_of_layers(
    run: RunConfig,
    model: PreTrainedModel,
    family: ModelSpec,
    few_bits: FewBits,
    targets: TargetModules | None,
    stored: StoredWeights | None,
) -> tuple[tuple[int, int], ...]:
    """Of each layer of a model on the meta device, the numbers of its matrices: those stored plainly, and in few bits.

    What several modules share is left out.

    Raises:
        ModelError: They are to be fed to the GPU, and cannot be.
    """
    if run.model.stream_layers:
        require_streamable(family, few_bits, targets, stored)
    uses = uses_of_parameters(model)
    packed = {f"{module}.weight" for module in few_bits.linear} | set(few_bits.experts)
    found = []
    for (stack, number), layer in placed_layers(model, family.stacks):
        counts = [0, 0]
        for name, weight in layer.named_parameters(prefix=f"{family.stacks[stack]}.{number}"):
            if weight.dim() > 1 and uses[weight] == 1:
                counts[name in packed] += weight.numel()
        found.append((counts[0], counts[1]))
    return tuple(found)


def frozen_ends(model: PreTrainedModel, targets: TargetModules | None) -> tuple[int, ...]:
    """The numbers of a model's embeddings and head, where both are frozen and plain; none where they are not."""
    ends = ends_of(model)
    if ends is None or targets is None:
        return ()
    names = {module: name for name, module in model.named_modules()}
    trained = (*targets.modules, *targets.saved, *targets.rows, *(weight.name for weight in targets.weights))
    if any(is_within(each, names[end]) for end in ends[:2] for each in trained):
        return ()
    return tuple(end.get_parameter("weight").numel() for end in ends[:2])


def require_streamable(
    family: ModelSpec, few_bits: FewBits, targets: TargetModules | None, stored: StoredWeights | None
) -> None:
    """Refuse layers that cannot be fed to the GPU.

    Raises:
        ModelError: Experts in 4 bits, weights in 8, or modules inside the layers that are trained whole.
    """
    why, remedy = None, "write false"
    within = [name for name in (targets.saved if targets else ()) if is_within(name, *family.stacks.values())]
    if few_bits.experts:
        why = "experts in 4 bits are not fed to the GPU"
        remedy = "write false, or quantization.experts: false, which leaves them in 16 bits"
    elif stored is not None and stored.quantization is not None and stored.quantization.bits == 8:
        why = f"the weights are quantized already ({stored.words}), and those in 8 bits are not fed to the GPU"
    elif within:
        why = f"what is trained whole is not fed to the GPU, and {within[0]} is inside a layer"
        remedy = "write false, or leave it out of lora.modules_to_save"
    if why is not None:
        raise ModelError(why, key="model.stream_layers", remedy=remedy)


NO_EXPERTS = ExpertSizes(0, 0, 0)


def quantization_of(run: RunConfig, stored: StoredWeights | None) -> QuantizationSection | None:
    """How the frozen weights are in memory: as the files have them, or as the config asks for it.

    Raises:
        ModelError: Files with quantized weights, and a config that asks for others or trains every weight.
    """
    asked = run.quantization if run.method == "qlora" else None
    if asked is not None and stored is not None and stored.quantization is None:
        message = f"the weights are quantized already ({stored.words}), and become ordinary ones while they are loaded"
        remedy = "Write method: lora, which trains an adapter on them as they are, or name the unquantized model."
        raise ModelError(message, key="method", remedy=remedy)
    refuse_another_quantization(stored, asked)
    if stored is None:
        return asked
    if run.method == "full":
        message = f"the weights are quantized ({stored.words}), and method: full would train every one of them"
        raise ModelError(message, key="method", remedy="Write method: lora, or name the unquantized model.")
    return stored.quantization


def stored_notes(run: RunConfig, stored: StoredWeights | None) -> Iterator[str]:
    """What files with quantized weights mean for a run."""
    if stored is None:
        return
    if stored.quantization is None:
        said = f"the weights are stored by {stored.method}, and become ordinary ones while they are loaded"
        yield f"{said}: in memory they take as much as those of any model"
        return
    as_they_are = f"the weights are quantized already ({stored.words}), and are trained on as they are"
    yield f"{as_they_are}: method: lora is then QLoRA" if run.method == "lora" else as_they_are
    if run.method == "qlora" and run.quantization.double_quant != stored.quantization.double_quant:
        yield f"quantization.double_quant is {str(stored.quantization.double_quant).lower()}, as the weights are"


def unused_notes(unused: Sequence[TensorHeader]) -> Iterator[str]:
    """What there is to say about weights that the files hold and the model has no place for."""
    if unused:
        numbers = sum(math.prod(header.shape) for header in unused)
        names = listed([header.name for header in unused], MOST_NAMED)
        yield f"the files hold {numbers:,} numbers that the model has no place for, and that are not read: {names}"


def head_notes(run: RunConfig, model: ModelHandle, new: Sequence[str]) -> Iterator[str]:
    """What there is to say about where a classifier's head begins."""
    base = load_any_config(model)
    if run.method != "full" and run.lora.start_from is not None:
        yield "the head for classes is that of lora.start_from, and training goes on with it"
    elif not new:
        yield "the base has a head for these classes, and training goes on with it"
    elif is_classifier(base):
        classes = ", ".join(class_names(base))
        yield f"the base has a head for other classes ({classes}): {' and '.join(new)} begins anew"
    else:
        begin = "begin" if len(new) > 1 else "begins"
        yield f"the base has no head for classes: {' and '.join(new)} {begin} with random numbers, by the seed"
