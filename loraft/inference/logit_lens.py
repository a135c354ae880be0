"""What each layer would have said, had it been the last: the logit lens.

Source: nostalgebraist 2020, interpreting GPT: the logit lens
    (https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens).
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from loraft.inference.decoder_state import products_in_model_dtype
from loraft.models.registry import FAMILIES, spec_of


class LogitLens:
    """Catches, while it is entered, what each layer of a model gives for the last token of the first row.

    What a layer would have said comes from a pass of the model in which the last layer's output is replaced, so that
    all that follows it is done by the model itself.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        path = spec_of(model.config.model_type, FAMILIES).layers_path
        self._layers: list[nn.Module] = list(cast("nn.ModuleList", model.get_submodule(path)))
        self._states: list[Tensor] = []
        self._in_place: Tensor | None = None
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._hooks = [layer.register_forward_hook(self._caught) for layer in self._layers]
        self._hooks.append(self._layers[-1].register_forward_hook(self._replaced))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.inference_mode()
    def logits(self, own: Tensor) -> Tensor:
        """What each layer says to the token that the model read last.

        Args:
            own: `[vocab]`, what the model itself said to it: the last layer's.

        Returns:
            `[layers, vocab]`, float32.
        """
        said = self.through_the_end(torch.stack(self._states))
        return torch.cat([said[:-1], own[None]])

    @torch.inference_mode()
    def through_the_end(self, states: Tensor) -> Tensor:
        """What the model makes of these outputs of its last layer: `[states, hidden]` -> `[states, vocab]`."""
        blank = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
        inputs: dict[str, Any] = {"input_ids": blank}
        if self._model.config.is_encoder_decoder:
            nothing_read = BaseModelOutput(last_hidden_state=cast("Any", torch.zeros_like(states)[:, None]))
            inputs = {"encoder_outputs": nothing_read, "decoder_input_ids": blank}
        self._in_place = states[:, None]
        try:
            with products_in_model_dtype(self._model):
                logits: Tensor = self._model(**inputs, use_cache=False).logits
        finally:
            self._in_place = None
        return logits[:, -1].float()

    def _caught(self, layer: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        if self._in_place is not None:
            return
        if layer is self._layers[0]:
            self._states = []
        hidden = output if isinstance(output, Tensor) else output[0]
        self._states.append(hidden[0, -1])

    def _replaced(self, _: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> object:
        if self._in_place is None:
            return None
        return self._in_place if isinstance(output, Tensor) else (self._in_place, *output[1:])
