"""How far a model reads: the positions that it can tell apart, and those that it was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from loraft.models.hf_config import configured_positions, stretched_positions
from loraft.models.modules import wrapped_model


def learned_positions(model: nn.Module) -> int | None:
    """How many positions a model can tell apart: the rows of its position table, None where it has none.

    A table is told by its size, the configured number of positions, for which some families (OPT) hold a few rows
    more. Sinusoidal positions are kept in a table too. Rotary, ALiBi and relative ones have none.
    """
    base = wrapped_model(model)
    configured = configured_positions(base.config)
    if configured is None:
        return None
    vocabulary = {id(weight) for weight in base.get_input_embeddings().parameters()}
    embeddings = (module for module in base.modules() if isinstance(module, nn.Embedding))
    # An encoder and a decoder each have an embedding of the vocabulary, and share its weight.
    tables = [module for module in embeddings if id(module.weight) not in vocabulary]
    return configured if any(0 <= table.num_embeddings - configured <= 2 for table in tables) else None


def prompt_limit(model: nn.Module) -> int | None:
    """The most tokens that a prompt may have: the positions that a model was trained with; None where they do not end.

    Rotary positions go on, and beyond those that were trained the answers are noise.
    """
    config = wrapped_model(model).config
    rotary = getattr(config.get_text_config(), "rope_parameters", None)
    return stretched_positions(config) if rotary else learned_positions(model)


def trained_positions(model: nn.Module) -> int | None:
    """The positions of training where an answer goes on beyond them; None where it ends with them or knows none."""
    return prompt_limit(model) if learned_positions(model) is None else None


def beyond_training(model: nn.Module, prompts: Iterable[Sequence[int]], max_new_tokens: int) -> Iterator[str]:
    """What there is to say, before prompts of tokens are answered, where answers may leave the positions of training.

    The last token of an answer is never read. What an encoder reads takes none of the decoder's positions.
    """
    trained = trained_positions(model)
    read = 1 if wrapped_model(model).config.is_encoder_decoder else max(map(len, prompts), default=0)
    if trained is not None and read <= trained < read + max_new_tokens - 1:  # a longer prompt is refused
        yield (
            f"a prompt of {read:,} tokens and an answer of up to {max_new_tokens:,} (`max_new_tokens`) go beyond the "
            f"{trained:,} positions that the model was trained with: what is said there is noise"
        )
