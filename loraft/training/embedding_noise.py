"""NEFTune: noise on the embeddings of the rows that are trained on.

transformers takes the length of the whole line for that of the row, so that packed and padded rows get less noise than
their own length asks for, and padding gets some. Of T5, BART and their kin it hooks a module that is not run.

Source: Jain et al. 2023, NEFTune, section 2 (https://arxiv.org/abs/2310.05914).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraft.adapters.inject import AdaptedModel
from loraft.kernels.transfer import to_device
from loraft.planning.run_plan import RunPlan
from loraft.tokenization.examples import Example


@contextmanager
def noisy_embeddings(plan: RunPlan, adapted: AdaptedModel, rows: Sequence[Example]) -> Iterator[None]:
    """While this is entered, one batch of these rows is read with noise, where the plan asks for it.

    It is drawn from torch's own generator of the device, whose state checkpoints keep.
    """
    alpha = plan.config.training.neftune_noise_alpha
    with ExitStack() as hooks:
        if alpha is not None:
            for stack, embedding in embeddings_of(adapted).items():
                lengths = [length for row in rows for length in plan.task.read_by(stack, row)]
                hooks.callback(embedding.register_forward_hook(partial(_add_noise, alpha, lengths)).remove)
        yield


def embeddings_of(adapted: AdaptedModel) -> Mapping[str, nn.Module]:
    """What turns tokens into vectors, for each stack of layers."""
    model, family = adapted.loaded.model, adapted.loaded.family
    readers: Mapping[str, PreTrainedModel] = dict.fromkeys(family.stacks, model)
    if family.encoder_path is not None:
        readers = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}  # type: ignore[no-untyped-call]
    return {stack: reader.get_input_embeddings() for stack, reader in readers.items()}


def noise_bounds(alpha: float, lengths: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The most that is added to each position, `[lines, time, 1]`: alpha / √(length · width), and 0 at padding.

    Args:
        alpha: NEFTune's only setting.
        lengths: Those of the rows, which lie a line each, or end to end in one.
        shape: That of the embeddings, `[lines, time, width]`.
    """
    lines, time, width = shape
    bounds = torch.zeros(lines, time)
    for line, rows in enumerate([lengths] if lines == 1 else [[length] for length in lengths]):
        start = 0
        for length in rows:
            bounds[line, start : start + length] = alpha / (length * width) ** 0.5
            start += length
    return bounds[:, :, None]


def _add_noise(alpha: float, lengths: Sequence[int], module: nn.Module, _inputs: object, embedded: Tensor) -> Tensor:
    if not module.training:  # what a preference is compared with is read without
        return embedded
    drawn = torch.rand(embedded.shape, device=embedded.device) * 2 - 1
    bounds = to_device(noise_bounds(alpha, lengths, embedded.shape), embedded.device)
    return embedded + (drawn * bounds).to(embedded.dtype)
