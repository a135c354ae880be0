"""What is known of how something was trained, as far as its answers follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from loraft.config.choices import SpecialTokensInText, TaskName


@dataclass(frozen=True)
class SourceFormat:
    """How the sources of an encoder-decoder are rendered, as a `data` section says it: None where nobody said."""

    prefix: str = ""
    source_lang: str | None = None
    target_lang: str | None = None


@dataclass(frozen=True)
class TrainingMetadata:
    """How something was trained, as far as its answers follow from it and it was recorded.

    Attributes:
        plain: It learned plain text, and no conversation: its prompts are plain.
        labels: The classes that it tells apart.
        pairs: There were rows with two texts to be classified together; None where that was not recorded.
        cut_to: The tokens that longer texts to be classified were cut to.
    """

    task: TaskName | None = None
    system_prompt: str | None = None
    plain: bool = False
    sources: SourceFormat = field(default_factory=SourceFormat)
    special_tokens_in_text: SpecialTokensInText = "text"
    labels: tuple[str, ...] = ()
    pairs: bool | None = None
    cut_to: int | None = None
