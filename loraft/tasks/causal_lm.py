"""Causal language modelling: a decoder goes on with a text, or answers in a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from loraft.config.choices import RowFormat, TaskName
from loraft.rows.formats import THOUGHTS, Conversation, Message, PromptCompletion, Record
from loraft.tasks.task import TEXT_LOSS, TEXT_METRICS, Reference, StarterFacts, Task, TaskMetrics, TokenSpan
from loraft.tokenization.examples import IGNORED, DatasetFacts, Example, RowRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loraft.config.schema import RunConfig
    from loraft.config.sections import DataSection
    from loraft.tasks.loss import TaskLoss
    from loraft.tasks.training_metadata import TrainingMetadata
    from loraft.tokenization.causal_lm_rows import CausalLMRenderer

MORE_THAN_CONTENT = ("tool_calls", *THOUGHTS)
"""What a turn may say beside its content, in words that are the chat template's."""


class CausalLM(Task):
    """A decoder learns to go on with a text, or to answer in a conversation."""

    name: ClassVar[TaskName] = "causal_lm"
    summary = "A decoder goes on with a text."
    group = "decoder"
    formats: ClassVar[tuple[RowFormat, ...]] = ("messages", "sharegpt", "alpaca", "prompt_completion", "text")
    peft_type = "CAUSAL_LM"
    auto_class = "AutoModelForCausalLM"
    metrics = TaskMetrics(always=TEXT_LOSS, offered=TEXT_METRICS, default=("exact_match",), where_json=("valid_json",))
    packs = True
    balances_routers = True
    joins_prompts = True
    reads_system_prompts = True
    starter_model = "builtin:smollm2-135m-instruct"
    starter_rows: ClassVar[tuple[str, RowFormat]] = ("builtin:tickets", "messages")

    def facts(self, data: DataSection, records: Sequence[Record]) -> DatasetFacts:
        """Whether there are conversations, and the system prompt that all of them begin with."""
        conversations = not records or any(isinstance(record, Conversation) for record in records)
        return DatasetFacts(common_system_prompt(records), conversations)

    def renderer(self, data: DataSection, tokenizer: PreTrainedTokenizerBase, facts: DatasetFacts) -> CausalLMRenderer:
        """What renders conversations with the chat template, and completions as they stand."""
        return self.renderer_class(facts).for_tokenizer(
            tokenizer,
            chat_template=data.chat_template,
            conversations=facts.conversations,
            train_on=data.train_on,
            system_prompt=facts.system_prompt,
            plain=not facts.conversations,
            split_turns=data.split_turns,
            special_tokens_in_text=data.special_tokens_in_text,
        )

    def renderer_class(self, facts: DatasetFacts) -> type[CausalLMRenderer]:
        """The class of the renderer of a run."""
        from loraft.tokenization.causal_lm_rows import CausalLMRenderer

        return CausalLMRenderer

    def reference(self, record: Record, labels: Sequence[str]) -> Reference | None:
        """The assistant's last turn that may be learned, or the completion; plain text asks nothing.

        Nor does a turn that calls tools or has thoughts beside its content: the content alone is not what is learned.
        """
        if isinstance(record, PromptCompletion):
            return Reference(record.prompt, record.completion)
        if not isinstance(record, Conversation):
            return None
        turns = enumerate(record.messages)
        last = max((place for place, turn in turns if turn.role == "assistant" and turn.train is not False), default=0)
        answer = record.messages[last]
        if last == 0 or any(answer.more.get(key) for key in MORE_THAN_CONTENT):
            return None
        return Reference(record.messages[:last], answer.content, tools=record.tools)

    def spans(self, example: Example) -> Iterator[TokenSpan]:
        """The text: nothing predicts its first token, whatever the label."""
        yield TokenSpan("text", example.input_ids, [False, *(label != IGNORED for label in example.labels[1:])])

    @property
    def loss(self) -> type[TaskLoss]:
        """The loss of the tokens that are trained."""
        from loraft.tasks.loss import CausalLMLoss

        return CausalLMLoss

    def renderer_as_trained(self, tokenizer: PreTrainedTokenizerBase, metadata: TrainingMetadata) -> CausalLMRenderer:
        """What makes prompts with the chat template, or gives them as they are where plain text was learned."""
        from loraft.tokenization.causal_lm_rows import CausalLMRenderer

        made = CausalLMRenderer.for_tokenizer(
            tokenizer,
            conversations=False,
            system_prompt=metadata.system_prompt,
            special_tokens_in_text=metadata.special_tokens_in_text,
        )
        if metadata.plain and made.template is not None:
            note = "it learned plain text: a prompt is given as it is, without the chat template"
            made = replace(made, plain=True, notes=(note,))
        return made

    def prompt_ids(self, example: Example, asked: Reference, renderer: RowRenderer) -> list[int]:
        """The tokens before the answer, on which there was no loss unless all that is read is learned."""
        from loraft.tokenization.causal_lm_rows import CausalLMRenderer

        if not isinstance(asked.asked, str):
            return renderer.prompt_ids(asked.asked, asked.tools)
        assert isinstance(renderer, CausalLMRenderer), "the task makes its own"
        if renderer.train_on == "all":
            return replace(renderer, plain=True).prompt_ids([Message("user", asked.asked)])
        return example.input_ids[: next(place for place, label in enumerate(example.labels) if label != IGNORED)]

    def starter_keys(self, start: StarterFacts) -> Iterator[tuple[str, object, str]]:
        """What of a row is learned."""
        if start.format != "text":
            yield "data.train_on", "completions", "Only answers are learned, not the questions; all learns every token."

    def facts_for_card(self, config: RunConfig, count: int) -> Mapping[str, str]:
        """How many tokens were trained, and which."""
        return {"trained tokens": f"{count:,} (train_on: {config.data.train_on})"}


def common_system_prompt(records: Sequence[Record]) -> str | None:
    """The system prompt that every conversation begins with; None when they differ or have none."""
    prompts = {record.system_prompt if isinstance(record, Conversation) else None for record in records}
    return prompts.pop() if len(prompts) == 1 else None
