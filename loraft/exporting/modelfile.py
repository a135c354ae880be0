"""Ollama's Modelfile: the chat template in Go's words, the system prompt, the stops and how tokens are drawn.

Ollama does not run the Jinja of a chat template. What the template prints around each turn is found by rendering
conversations, written as a Go template, and held against the renderings of others before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraft.errors import DataError, ModelError
from loraft.inference.sampling import SamplingParams
from loraft.inference.session import Speaker
from loraft.rows.formats import Message
from loraft.tokenization.assistant_mask import ChatTemplate

NAME = "Modelfile"
SYSTEM, USER, ANSWER, AGAIN = "<S>", "<U>", "<A>", "<V>"
"""The contents of the turns that are rendered to find what stands around them."""


@dataclass(frozen=True)
class TurnTexts:
    """What a chat template prints around the turns of a conversation.

    Attributes:
        start: What stands before everything: the begin-of-text token, or nothing.
        user: Before and after what the user says.
        assistant: Before and after an answer.
        system: Before and after the system prompt.
        in_user_turn: The system prompt stands in the user's first turn, behind what begins that.
        default: The system prompt that is printed where none is given; None where none is.
        answer: What an answer follows, behind the last turn.
    """

    start: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str] | None
    in_user_turn: bool
    default: str | None
    answer: str

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text of a conversation up to the next answer, as Ollama makes it by the Go template."""
        given = {message.role: message.content for message in messages}.get("system", self.default)
        system = "" if given is None or self.system is None else self.system[0] + given + self.system[1]
        text = self.start
        if not self.in_user_turn:
            text, system = text + system, ""
        for message in messages:
            if message.role != "system":
                before, after = self.user if message.role == "user" else self.assistant
                text, system = text + before + system + message.content + after, ""
        return text + self.answer

    def in_go(self, *, adds_start: bool) -> str:
        """The Go template. `adds_start`: llama.cpp puts the begin-of-text token in front by itself."""
        system, turn = '{{ if eq .Role "system" }}', '{{ else if eq .Role "user" }}' + self.user[0]
        before, after = self.system or ("", "")
        if self.in_user_turn:
            system += "{{ $system = .Content }}"
            turn += "{{ if $system }}" + before + "{{ $system }}" + after + '{{ $system = "" }}{{ end }}'
        elif self.system is not None:
            system += before + "{{ .Content }}" + after
        answered = '{{ else if eq .Role "assistant" }}' + self.assistant[0] + "{{ .Content }}" + self.assistant[1]
        turns = f"{system}{turn}{{{{ .Content }}}}{self.user[1]}{answered}{{{{ end }}}}"
        first = '{{ $system := "" }}' if self.in_user_turn else ""
        start = "" if adds_start else self.start
        return f"{start}{first}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{self.answer}"


def modelfile(speaker: Speaker, rules: SamplingParams, file: str, *, adds_start: bool) -> str:
    """The text of a Modelfile for a .gguf file beside it.

    Args:
        speaker: How the model is asked and answers.
        rules: How its tokens are drawn.
        file: The name of the .gguf file.
        adds_start: Whether llama.cpp puts the begin-of-text token in front of what it reads.

    Raises:
        ModelError: The chat template does more than print something around each turn, or a text cannot be quoted.
    """
    renderer = speaker.renderer
    template, system = "{{ .Prompt }}", renderer.system_prompt
    if renderer.prompt_template is not None:
        texts = turn_texts(renderer.prompt_template)
        template, system = texts.in_go(adds_start=adds_start), system or texts.default
    lines = [f"FROM ./{file}", f"TEMPLATE {_quoted(template)}"]
    if system:
        lines.append(f"SYSTEM {_quoted(system)}")
    stops = [speaker.tokenizer.convert_ids_to_tokens(each) for each in speaker.stop_ids]
    lines += [f'PARAMETER stop "{each}"' for each in stops if isinstance(each, str) and '"' not in each]
    lines += [f"PARAMETER {key} {value:g}" for key, value in _in_ollamas_words(rules).items()]
    return "\n".join(lines) + "\n"


def _in_ollamas_words(rules: SamplingParams) -> dict[str, float]:
    values = {"temperature": rules.temperature, "repeat_penalty": rules.repetition_penalty}
    if rules.greedy:
        return values
    top_p = 1.0 if rules.top_p is None else rules.top_p
    return {**values, "top_k": rules.top_k or 0, "top_p": top_p, "min_p": rules.min_p or 0.0}


def _quoted(text: str) -> str:
    if '"""' in text:
        raise _unwritable("a text has three quotation marks, which end a text in a Modelfile")
    return f'"""{text}"""'


def _unwritable(why: str) -> ModelError:
    remedy = "Leave `ollama` out, and write the Modelfile by hand: FROM with the file, and a TEMPLATE."
    return ModelError(f"no Modelfile says what the chat template does: {why}", parameter="ollama", remedy=remedy)


def turn_texts(template: ChatTemplate) -> TurnTexts:
    """What a template prints around turns, found by rendering and held against other renderings.

    Raises:
        ModelError: It does more than that, or takes no conversation of several turns.
    """
    asked, answered = Message("user", USER), Message("assistant", ANSWER)
    talk = [asked, answered, Message("user", AGAIN)]
    try:
        whole, answered_whole = template.render([asked]), template.render(talk[:2])
        alone, several = template.prompt([asked]), template.prompt(talk)
    except DataError as error:
        raise _unwritable(f"it refuses a conversation ({error.problems[0].message})") from error
    between, again = _between(several, USER, ANSWER), _between(several, ANSWER, AGAIN)
    end = str(template.tokenizer.eos_token or "")
    user_after = _behind(whole.rpartition(USER)[2], between, end)
    answer_after = _behind(answered_whole.rpartition(ANSWER)[2], again, end)
    begins, _, tail = alone.rpartition(USER)
    user_before = again.removeprefix(answer_after)
    bos = template.tokenizer.bos_token
    begins_with_it = isinstance(bos, str) and begins.startswith(bos) and not user_before.startswith(bos)
    start = bos if begins_with_it else ""
    head = begins.removeprefix(start).removesuffix(user_before)
    system, in_user_turn = _system(template, start, user_before)
    default = None
    if head and system is not None and not in_user_turn:
        default = head.removeprefix(system[0]).removesuffix(system[1])
    found = TurnTexts(
        start=start,
        user=(user_before, user_after),
        assistant=(between.removeprefix(user_after), answer_after),
        system=system,
        in_user_turn=in_user_turn,
        default=default,
        answer=tail.removeprefix(user_after),
    )
    _hold(template, found)
    return found


def _behind(text: str, following: str, end: str) -> str:
    """What stands behind a turn, without the end of text that some templates print behind the last one."""
    return text if following.startswith(text) else text.removesuffix(end)


def _between(text: str, first: str, second: str) -> str:
    return text.rpartition(second)[0].rpartition(first)[2]


def _system(template: ChatTemplate, start: str, user_before: str) -> tuple[tuple[str, str] | None, bool]:
    """What stands around a system prompt, None where there can be none; and whether that is in the user's turn."""
    try:
        text = template.prompt([Message("system", SYSTEM), Message("user", USER)])
    except DataError:
        return None, False
    if SYSTEM not in text:
        return None, False
    before, after = text.rpartition(SYSTEM)[0].removeprefix(start), _between(text, SYSTEM, USER)
    if after.endswith(user_before):
        return (before, after.removesuffix(user_before)), False
    return (before.removeprefix(user_before), after), True


def _hold(template: ChatTemplate, found: TurnTexts) -> None:
    """Compare what Ollama would make of conversations with what the template makes of them."""
    talk = [Message("user", "first"), Message("assistant", "second"), Message("user", "third  one")]
    opening = [Message("system", "be brief")]
    systems = [opening, []] if found.system is not None else [[]]
    longer = [*talk, Message("assistant", "fourth"), Message("user", "fifth")]
    for messages in [[*before, *part] for before in systems for part in (talk[:1], talk, longer)]:
        if template.prompt(messages) != found.prompt(messages):
            raise _unwritable("it does more than print something around each turn")
    texts = (found.start, *found.user, *found.assistant, *(found.system or ()), found.answer)
    if any("{{" in text for text in texts):
        raise _unwritable("it prints {{, with which Go begins a command")
