"""The same prompts answered by the base and by each adapter on it: one base in memory.

Every speaker is asked in its own way: with the template, the system prompt and the defaults that it was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraft.errors import AdapterError
from loraft.events import Note, Observer, Progress
from loraft.inference.completion import Completion
from loraft.inference.engine import complete_batch
from loraft.inference.requests import GenerationRequest
from loraft.inference.session import BASE, Session


@dataclass(frozen=True)
class AdapterComparison:
    """A prompt and what each voice answers to it.

    Attributes:
        prompt: The prompt as it was given.
        completions: The answer of each voice by its name: the base first, then the adapters.
    """

    prompt: str
    completions: dict[str, Completion]


def compare(
    session: Session, prompts: Sequence[str], *, options: GenerationRequest, batch_size: int, observer: Observer
) -> list[AdapterComparison]:
    """Let every voice answer every prompt.

    Args:
        session: A base with at least one adapter.
        prompts: What is asked.
        options: How it is answered.
        batch_size: How many prompts at a time.
        observer: Is told how far it is.

    Raises:
        AdapterError: There is no adapter to compare the base with.
        DataError: A prompt is empty or too long.
    """
    if not session.adapters:
        message = "there is no adapter to compare the base with"
        raise AdapterError(message, parameter="compare", remedy="Name an adapter or a run, or give `adapters`.")
    voices = (BASE, *session.adapters)
    total = len(voices) * len(prompts)
    answers: dict[str, list[Completion]] = {}
    for name in voices:
        voice = session.voice(name)
        for note in voice.notes if name != session.voice().name else ():  # those of the first were told already
            observer(Note(f"{name}: {note}"))
        asked = [voice.conversation(prompt, options.system) for prompt in prompts]
        ids = [voice.prompt_ids(messages) for messages in asked]
        for note in voice.about_prompts(asked):
            observer(Note(f"{name}: {note}"))
        with session.speaking(voice) as model:
            answers[name] = complete_batch(
                model, voice.tokenizer, ids, **voice.settings(options), batch_size=batch_size
            )
        observer(Progress("answers", len(answers) * len(prompts), total))
    return [
        AdapterComparison(prompt, {name: answers[name][index] for name in voices})
        for index, prompt in enumerate(prompts)
    ]
