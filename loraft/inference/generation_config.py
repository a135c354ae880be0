"""The `generation_config.json` beside a model or an adapter: read and distrusted, for it may be anybody's."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError
from transformers import GenerationConfig, PreTrainedModel

from loraft.errors import ModelError, Problem
from loraft.models.hf_logging import quietly_reading

FILE = "generation_config.json"


class _Heeded(BaseModel):
    """The values that loraft heeds, with their types."""

    model_config = ConfigDict(extra="ignore", strict=True, from_attributes=True)

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: NonNegativeInt | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: PositiveInt | None = None
    length_penalty: FiniteFloat | None = None
    forced_bos_token_id: NonNegativeInt | None = None
    forced_eos_token_id: NonNegativeInt | list[NonNegativeInt] | None = None
    decoder_start_token_id: NonNegativeInt | None = None
    suppress_tokens: list[NonNegativeInt] | None = None
    bad_words_ids: list[list[NonNegativeInt]] | None = None
    stop_strings: str | list[str] | None = None
    max_new_tokens: PositiveInt | None = None
    eos_token_id: NonNegativeInt | list[NonNegativeInt] | None = None


def saved_defaults(folder: Path) -> GenerationConfig | None:
    """The defaults that lie in a folder, or None where none do.

    Raises:
        ModelError: The file cannot be read, or a value that loraft heeds is of another type.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    with quietly_reading(file):
        defaults: GenerationConfig = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return _checked(defaults, file)


def own_defaults(model: PreTrainedModel, folder: Path) -> GenerationConfig:
    """The defaults of an encoder-decoder without the file: its config.json may say how answers begin and end.

    Raises:
        ModelError: A value that loraft heeds is of another type.
    """
    return _checked(model.generation_config, folder / "config.json")


def _checked(defaults: GenerationConfig, file: Path) -> GenerationConfig:
    try:
        _Heeded.model_validate(defaults)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]): detail for detail in error.errors()}
        raise ModelError.several(
            Problem(f"{detail['input']!r} is not taken here: {detail['msg']}", str(file), key)
            for key, detail in wrong.items()
        ) from error
    return defaults
