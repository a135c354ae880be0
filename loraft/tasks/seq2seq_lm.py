"""Sequence to sequence: an encoder-decoder answers a source with a target, as in translation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from loraft.config.choices import RowFormat, TaskName
from loraft.rows.formats import Record, Seq2SeqRecord
from loraft.tasks.task import ROUGE, TEXT_LOSS, TEXT_METRICS, Reference, StarterFacts, Task, TaskMetrics, TokenSpan
from loraft.tasks.training_metadata import SourceFormat, TrainingMetadata
from loraft.tokenization.examples import DatasetFacts, Example, RowRenderer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from loraft.config.sections import DataSection
    from loraft.tasks.loss import TaskLoss
    from loraft.tokenization.plain_text_rows import Seq2SeqRenderer

LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "fi": "Finnish", "fr": "French",
    "hi": "Hindi", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "tr": "Turkish", "uk": "Ukrainian",
    "zh": "Chinese",
}  # fmt: skip
"""What T5 was taught to call languages."""


class Seq2SeqLM(Task):
    """An encoder-decoder learns to answer a source with a target."""

    name: ClassVar[TaskName] = "seq2seq_lm"
    summary = "An encoder-decoder answers a source with a target."
    group = "encoder_decoder"
    formats: ClassVar[tuple[RowFormat, ...]] = ("translation", "prompt_completion", "alpaca")
    only_if_asked: ClassVar[tuple[RowFormat, ...]] = ("prompt_completion", "alpaca")
    peft_type = "SEQ_2_SEQ_LM"
    auto_class = "AutoModelForSeq2SeqLM"
    metrics = TaskMetrics(always=TEXT_LOSS, offered=TEXT_METRICS, default=("bleu", "chrf", *ROUGE, "exact_match"))
    inputs = "sources"
    translates = True
    starter_model = "google-t5/t5-small"
    starter_rows: ClassVar[tuple[str, RowFormat]] = ("data/train.jsonl", "translation")

    def renderer(self, data: DataSection, tokenizer: PreTrainedTokenizerBase, facts: DatasetFacts) -> RowRenderer:
        """What puts the prefix before sources, and the codes of languages where the tokenizer has them."""
        sources = SourceFormat(data.source_prefix, data.source_lang, data.target_lang)
        in_text = data.special_tokens_in_text
        return self.renderer_class(facts)(tokenizer, **vars(sources), special_tokens_in_text=in_text)

    def renderer_class(self, facts: DatasetFacts) -> type[Seq2SeqRenderer]:
        """The class of the renderer of a run."""
        from loraft.tokenization.plain_text_rows import Seq2SeqRenderer

        return Seq2SeqRenderer

    def reference(self, record: Record, labels: Sequence[str]) -> Reference | None:
        """The source, and the target that answers it."""
        assert isinstance(record, Seq2SeqRecord), "the task's own records"
        return Reference(record.source, record.target)

    def spans(self, example: Example) -> Iterator[TokenSpan]:
        """The source, which is read alone, and the target, of which all is learned."""
        yield TokenSpan("source", example.input_ids, [False] * len(example.input_ids))
        yield TokenSpan("target", example.labels, [True] * len(example.labels))

    def read_by(self, stack: str, example: Example) -> Sequence[int]:
        """The decoder reads targets, the encoder sources."""
        return [len(example.labels if stack == "decoder" else example.input_ids)]

    def length_limits(self, data: DataSection) -> Mapping[str, int]:
        """Those of sources, and those of targets where they have their own."""
        return {"data.max_length": data.max_length, "data.max_target_length": data.max_target_length or 0}

    @property
    def loss(self) -> type[TaskLoss]:
        """The loss of the targets' tokens."""
        from loraft.tasks.loss import Seq2SeqLMLoss

        return Seq2SeqLMLoss

    def renderer_as_trained(self, tokenizer: PreTrainedTokenizerBase, metadata: TrainingMetadata) -> RowRenderer:
        """What makes sources with the prefix and in the languages of training."""
        from loraft.tokenization.plain_text_rows import Seq2SeqRenderer

        in_text = metadata.special_tokens_in_text
        return Seq2SeqRenderer(tokenizer, **vars(metadata.sources), special_tokens_in_text=in_text)

    def first_tokens(self, model: nn.Module, renderer: RowRenderer) -> Mapping[str, int | None]:
        """What the decoder reads first and, where the tokenizer knows languages, must say first: as in training.

        What it must say first is the code of the target's language; None where that is what it reads first.

        Raises:
            ModelError: The decoder has no start token.
        """
        import torch

        from loraft.models.modules import decoder_inputs
        from loraft.tokenization.plain_text_rows import Seq2SeqRenderer

        assert isinstance(renderer, Seq2SeqRenderer), "the task makes its own"
        device = next(model.parameters()).device
        target = torch.tensor(renderer.target_ids([""]), dtype=torch.long, device=device)
        start = int(decoder_inputs(model, target)[0, 0])
        first = {"forced_bos_token_id": renderer.forced_bos_id} if renderer.knows_languages else {}
        return {"decoder_start_token_id": start, **first}

    def starter_keys(self, start: StarterFacts) -> Iterator[tuple[str, object, str]]:
        """The languages, and what stands before each source."""
        source, target = (*start.languages, None, None)[:2]
        if source is not None and target is not None:
            why = "The key of the source in `translation`; a model such as NLLB takes its code."
            yield "data.source_lang", source, why
            yield "data.target_lang", target, "The key of the target."
        prefix = ""
        if start.prefixed and source in LANGUAGES and target in LANGUAGES:
            prefix = f"translate {LANGUAGES[source]} to {LANGUAGES[target]}: "
        why = "Stands before every source. T5 was trained with such words, others were not."
        yield "data.source_prefix", prefix, why
