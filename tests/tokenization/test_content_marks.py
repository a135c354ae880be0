"""What a conversation says and its rendering does not hold is refused, or counted and said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loraft.config.schema import RunConfig
from loraft.dataset.build import PreparedData, prepare
from loraft.errors import DataError
from loraft.rows.formats import Conversation, Message
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from loraft.tokenization.content_marks import PRIVATE, find_parts, unused_characters
from tests.tokenization.chats import (
    CHATML,
    CHATS,
    IM,
    MISTRAL_V3,
    QWEN3,
    QWEN3_WITH_TOOLS,
    R1_DISTILL,
    example_of,
    tokenizer_for,
    tokenizer_of,
)
from tests.tokenization.test_assistant_mask import trained_parts
from tests.tokenization.test_tools import CALL, TOOL

INST = ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]")
MISTRAL = tokenizer_of(INST, eos="</s>", bos="<s>", template=MISTRAL_V3)
QWEN = tokenizer_of(IM, eos="<|im_end|>", template=QWEN3)
R1 = tokenizer_of(("<s>", "</s>", "<|User|>", "<|Assistant|>"), eos="</s>", bos="<s>", template=R1_DISTILL)

SYSTEM = {"role": "system", "content": "Always answer in French."}
ONE = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}]
TWO = [*ONE, {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]
THOUGHT = [
    ONE[0],
    {"role": "assistant", "content": "<think>\nwell\n</think>\n\na1"},
    TWO[2],
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\na2"},
]


def prepared(tmp_path: Path, tokenizer: Any, rows: list[Any], **data: Any) -> PreparedData:
    path = tmp_path / "a.jsonl"
    given = ({"messages": row} if isinstance(row, list) else row for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    section = {"train": str(path), "eval": None, **data}
    return prepare(
        RunConfig.model_validate({"model": {"name_or_path": "x"}, "data": section}), tokenizer, tmp_path / "cache"
    )


def test_a_system_message_that_is_not_printed_behind_an_answer_is_refused_by_row(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, MISTRAL, [ONE, [SYSTEM, *ONE]])
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == (f"{tmp_path}/a.jsonl:2", "data.chat_template")
    assert problem.message == "the chat template leaves out what the system says"
    assert "data.split_turns: true" in str(problem.remedy)
    skipped = prepared(tmp_path, MISTRAL, [ONE, [SYSTEM, *ONE]], on_bad_row="skip")
    assert (skipped.report.sources[0].bad, len(skipped.train)) == (1, 1)


def test_split_turns_trains_each_answer_behind_the_prompt_that_generation_feeds(tmp_path: Path) -> None:
    data = prepared(tmp_path, MISTRAL, [[SYSTEM, *TWO]], split_turns=True)
    assert [MISTRAL.decode(row.input_ids) for row in data.train] == [
        "<s>[INST] Always answer in French.\n\nq1[/INST] a1</s>",
        "<s>[INST] q1[/INST] a1</s>[INST] Always answer in French.\n\nq2[/INST] a2</s>",
    ]
    assert [trained_parts(data.renderer, row) for row in data.train] == [[" a1</s>"], [" a2</s>"]]  # type: ignore[arg-type]
    assert [row.where for row in data.train] == [f"{tmp_path}/a.jsonl:1"] * 2
    assert data.report.sources[0].findings == []


@pytest.mark.parametrize(
    "template", [MISTRAL_V3, CHATML, CHATS["llama-3"].template, CHATS["vicuna"].template, R1_DISTILL]
)
def test_a_prompt_is_what_transformers_prints(template: str) -> None:
    """Byte for byte, for every template that knows a generation prompt; a system message is not lost for others."""
    tokenizer = tokenizer_of((*IM, "<s>", "</s>"), eos="</s>", bos="<s>", template=template)
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    assert renderer.template is not None
    asked = [SYSTEM, ONE[0]]
    theirs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ours = renderer.template.prompt([Message(**message) for message in asked])
    if "add_generation_prompt" in template or template == MISTRAL_V3:
        assert ours == theirs
    assert "Always answer in French." in ours


def test_thoughts_of_earlier_turns_that_are_left_out_are_counted_with_what_to_do(tmp_path: Path) -> None:
    keyed = [ONE[0], {**ONE[1], "reasoning_content": "well"}, *TWO[2:]]
    data = prepared(tmp_path, QWEN, [ONE, THOUGHT, THOUGHT])
    (found,) = data.report.sources[0].findings
    assert (found.rows, found.first) == (2, f"{tmp_path}/a.jsonl:2")
    assert "data.train_on: last" in found.what
    assert "data.split_turns: true" in found.what
    assert any(note.startswith(f"{tmp_path}/a.jsonl: in 2 rows of 3, the first {found.first}, the chat template leaves "
                               "out what is thought in earlier turns") for note in data.report.notes)  # fmt: skip
    again = prepared(tmp_path, QWEN, [ONE, THOUGHT, THOUGHT])  # from the rows that were kept
    assert again.report.sources[0].findings == [found]
    tools = tokenizer_of(IM, eos="<|im_end|>", template=QWEN3_WITH_TOOLS)
    assert prepared(tmp_path, tools, [keyed]).report.sources[0].findings[0].what == found.what


def test_split_turns_teaches_each_thought(tmp_path: Path) -> None:
    data = prepared(tmp_path, QWEN, [THOUGHT], split_turns=True)
    assert data.report.sources[0].findings == []
    assert [trained_parts(data.renderer, row) for row in data.train] == [  # type: ignore[arg-type]
        ["<think>\nwell\n</think>\n\na1<|im_end|>"],
        ["<think>\nhm\n</think>\n\na2<|im_end|>"],
    ]
    last = prepared(tmp_path, QWEN, [THOUGHT], split_turns=True, train_on="last")
    assert [row.input_ids for row in last.train] == [data.train[1].input_ids]


def test_a_generation_prompt_that_is_no_beginning_of_the_row_is_counted(tmp_path: Path) -> None:
    data = prepared(tmp_path, R1, [ONE, ONE])
    (found,) = data.report.sources[0].findings
    assert (found.rows, found.first) == (2, f"{tmp_path}/a.jsonl:1")
    assert found.what.startswith("generation feeds '<think>\\n' before the answer, and the row has it not")
    split = prepared(tmp_path, R1, [ONE], split_turns=True)
    assert R1.decode(split.train[0].input_ids) == "<s><|User|>q1<|Assistant|><think>\na1</s>"
    (found,) = split.report.sources[0].findings
    assert found.what.startswith("an answer stands inside the thought that the chat template opens")
    no_think = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n\n</think>\n\n' }}{% endif %}")
    switched = prepared(tmp_path, tokenizer_of(IM, eos="<|im_end|>", template=no_think), [ONE])
    assert "'<think>\\n\\n</think>\\n\\n'" in switched.report.sources[0].findings[0].what


def test_a_thought_in_an_answer_that_the_template_cuts_off_is_counted(tmp_path: Path) -> None:
    kinds = [found.what for found in prepared(tmp_path, R1, [THOUGHT[:2]]).report.sources[0].findings]
    assert any("leaves out what is thought in an answer" in kind for kind in kinds)


def test_a_thought_that_the_template_opens_before_one_of_the_content_is_counted(tmp_path: Path) -> None:
    """As Qwen3.8 and Kimi K2 Thinking have it, which read `reasoning_content` alone."""
    opens = CHATML.replace(
        "message['content']", "('<think></think>' if message.role == 'assistant' else '') + message['content']"
    )
    twice = tokenizer_of(IM, eos="<|im_end|>", template=opens)
    kinds = prepared(tmp_path, twice, [THOUGHT, ONE]).report.sources[0].findings
    assert [(found.rows, "reasoning_content" in found.what) for found in kinds] == [(1, True)]
    (found,) = prepared(tmp_path, twice, [THOUGHT[:2]], split_turns=True).report.sources[0].findings
    assert found.what == kinds[0].what
    assert prepared(tmp_path, tokenizer_for(CHATS["chatml"]), [THOUGHT]).report.sources[0].findings == []


def test_a_name_that_is_not_printed_is_counted(tmp_path: Path) -> None:
    row = [{**ONE[0], "name": "Ann"}, ONE[1]]
    (found,) = prepared(tmp_path, tokenizer_for(CHATS["chatml"]), [row, row]).report.sources[0].findings
    assert found.what == "the chat template does not print the name of a message of role user"
    assert found.rows == 2


def test_an_earlier_answer_that_is_left_out_is_refused() -> None:
    forgets = "{% for m in messages %}{% if m.role == 'user' or loop.last %}<|im_start|>{{ m.content }}<|im_end|>" \
              "{% endif %}{% endfor %}"  # fmt: skip
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=forgets), train_on="last")
    with pytest.raises(DataError, match="leaves out what the assistant says"):
        example_of(renderer, Conversation(tuple(Message(**message) for message in TWO)), "here")


def test_generation_refuses_a_system_message_that_the_template_leaves_out() -> None:
    silent = "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=silent))
    with pytest.raises(DataError, match="leaves out what the system says"):
        renderer.prompt_ids([Message("system", "Be brief."), Message("user", "q")])


CALLS = [
    ONE[0],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "rain"},
    {"role": "assistant", "content": "Yes."},
]


@pytest.mark.parametrize(
    ("template", "special", "eos", "trained"),
    [
        (QWEN3_WITH_TOOLS, IM, "<|im_end|>", [
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
            "<think>\n\n</think>\n\nYes.<|im_end|>",
        ]),
        (MISTRAL_V3.replace("loop.last %}{{- '[AVA", "loop.index0 == 0 %}{{- '[AVA"), INST, "</s>", [
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]</s>', " Yes.</s>",
        ]),
        (MISTRAL_V3.replace("loop.last %}{{- '[AVA", "(loop.last or loop_messages[-1].role != 'user') %}{{- '[AVA"),
         INST, "</s>", ['[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]</s>', " Yes.</s>"]),
    ],
    ids=["qwen3", "mistral-v3", "mistral-v3 moves its tools"],
)  # fmt: skip
def test_calls_of_tools_are_found_in_the_whole_rendering(
    template: str, special: tuple[str, ...], eos: str, trained: list[str]
) -> None:
    renderer = CausalLMRenderer.for_tokenizer(
        tokenizer_of(special, eos=eos, bos="<s>" if eos == "</s>" else None, template=template)
    )
    said = tuple(
        Message(m["role"], m["content"], more={k: v for k, v in m.items() if k in ("tool_calls", "name")})
        for m in CALLS
    )
    example = example_of(renderer, Conversation(said, (TOOL,)), "here")
    assert trained_parts(renderer, example) == trained


def test_a_row_of_every_private_character_has_its_answers_found() -> None:
    text = "".join(map(chr, PRIVATE[0]))
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(CHATS["chatml"]))
    example = example_of(renderer, Conversation((Message("user", text), Message("assistant", text))), "here")
    assert trained_parts(renderer, example) == [f"{text}<|im_end|>"]
    everything = "".join(chr(code) for codes in PRIVATE for code in codes)
    with pytest.raises(DataError, match="private"):
        unused_characters(everything)


def test_marks_that_a_template_does_not_take_are_left_out_one_by_one() -> None:
    """One part that a template looks into hides no other one."""

    def render(messages: Any, tools: Any) -> str:
        if messages[0]["content"] != "exactly this":
            raise DataError("no")
        return " ".join(message["content"] for message in messages[:2])

    messages = [{"role": "user", "content": text} for text in ("exactly this", "kept", "lost")]
    text, found = find_parts(messages, [], render)
    assert text == render(messages, [])
    assert {part.turn: places for part, places in found.items()} == {1: [17], 2: []}


def test_train_on_all_is_not_split() -> None:
    config = {"model": {"name_or_path": "x"}, "data": {"train": "a.jsonl", "train_on": "all", "split_turns": True}}
    with pytest.raises(ValueError, match="split_turns"):
        RunConfig.model_validate(config)


def test_a_split_conversation_is_the_same_in_every_process() -> None:
    renderer = replace(CausalLMRenderer.for_tokenizer(QWEN), split_turns=True)
    conversation = Conversation(tuple(Message(**message) for message in THOUGHT))
    rows = renderer.examples([renderer.render(part) for part in renderer.parts(conversation)], ["a:1", "a:1"])
    prompts = [renderer.prompt_ids(conversation.messages[:turn]) for turn in (1, 3)]
    assert all(row.input_ids[: len(prompt)] == prompt for row, prompt in zip(rows, prompts, strict=True))


def test_an_answer_apart_keeps_what_stands_before_its_marks() -> None:
    """A template may print more between the prompt and the place where it begins to mark."""
    marked = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think></think>"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tokenizer_of(IM, eos="<|im_end|>", template=marked)
    renderer = replace(CausalLMRenderer.for_tokenizer(tokenizer), split_turns=True)
    conversation = Conversation(tuple(Message(**message) for message in ONE))
    (part,) = renderer.parts(conversation)
    example = example_of(renderer, part, "here")
    assert tokenizer.decode(example.input_ids).endswith("<|im_start|>assistant\n<think></think>a1<|im_end|>")
    assert trained_parts(renderer, example) == ["a1<|im_end|>"]


def test_turns_apart_of_a_conversation_that_the_assistant_opens_or_in_which_nothing_is_trained() -> None:
    renderer = replace(CausalLMRenderer.for_tokenizer(QWEN), split_turns=True)
    opened = Conversation((Message("assistant", "Hello."), *(Message(**message) for message in ONE)))
    parts = [trained_parts(renderer, example_of(renderer, part, "here")) for part in renderer.parts(opened)]
    assert parts == [["Hello.<|im_end|>"], ["<think>\n\n</think>\n\na1<|im_end|>"]]
    untrained = Conversation(
        tuple(Message(m["role"], m["content"], train=False if m["role"] == "assistant" else None) for m in ONE)
    )
    (alone,) = renderer.parts(untrained)
    assert example_of(renderer, alone, "here").trained == 0
