"""Tools in conversations: printed by templates that know them, refused by row where a template would drop them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from loraft.config.schema import RunConfig
from loraft.config.sections import DataSource
from loraft.dataset.build import PreparedData, prepare
from loraft.errors import DataError
from loraft.rows.formats import Conversation, Message, to_question, to_record
from loraft.rows.raw_rows import read_rows
from loraft.rows.row import Row
from loraft.tasks import TASKS
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from tests.tokenization.chats import CHATML, CHATS, IM, example_of, tokenizer_for, tokenizer_of
from tests.tokenization.test_assistant_mask import trained_parts

HERMES = (
    "{%- if tools %}{{- '<|im_start|>system\\n<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}"
    "{{- '</tools><|im_end|>\\n' }}{%- endif %}{%- for message in messages %}{%- if message.role == 'tool' %}"
    "{{- '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response><|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}{%- if message.content %}{{- message.content }}{%- endif %}"
    "{%- for call in message.tool_calls or [] %}{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""As Qwen 2.5 and Hermes have it."""
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "rain"},
    {"role": "assistant", "content": "Yes."},
]
CALLED = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call><|im_end|>'


def conversation(**changes: Any) -> Conversation:
    found = to_record(Row({"messages": TURNS, "tools": [TOOL], **changes}, "a.jsonl:7"), "messages", {})
    assert isinstance(found, Conversation)
    return found


def test_rows_say_what_is_called_and_what_it_gave() -> None:
    said = conversation()
    assert said.tools == (TOOL,)
    assert said.messages[1] == Message("assistant", "", None, {"tool_calls": [CALL]})
    assert said.messages[2] == Message("tool", "rain", None, {"name": "weather"})
    assert conversation(tools=json.dumps([TOOL])).tools == (TOOL,)
    assert conversation(tools=None).tools == ()
    for inside, tools in (({"tools": [TOOL]}, (TOOL,)), ({}, ())):
        row = Row({"messages": TURNS, "about": inside}, "a.jsonl:7")
        found = to_record(row, "messages", {"tools": "about.tools"})
        assert isinstance(found, Conversation)
        assert found.tools == tools
    assert conversation(messages=[TURNS[0], {**TURNS[3], "tool_calls": []}]).messages[1] == Message("assistant", "Yes.")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tools": "no json"}, "tools"),
        ({"tools": {"a": 1}}, "tools"),
        ({"messages": [TURNS[0], {"role": "assistant", "tool_calls": "weather()"}]}, "messages[1].tool_calls"),
        ({"messages": [TURNS[0], {"role": "assistant", "tool_calls": []}]}, "messages[1].content"),
        ({"tools": [{**TOOL, "description": "half \ud83d"}]}, "tools"),
        ({"messages": [TURNS[0], {**TURNS[1], "tool_calls": [{"function": {"\0": "a"}}]}]}, "messages[1].tool_calls"),
        ({"messages": [TURNS[0], {**TURNS[3], "thinking": "half \ud83d"}]}, "messages[1].thinking"),
    ],
)
def test_c46_bad_tools_are_named_with_their_place(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(DataError) as caught:
        conversation(**changes)
    assert (caught.value.problems[0].where, caught.value.problems[0].key) == ("a.jsonl:7", field)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"city": "Os\\ud800"}', "half a character"),
        ('{"city": "Os\\u0000"}', "a NUL character"),
        ('{"city": "Oslo", "city": "Rome"}', "'city' twice"),
        ('{"city": ' * 200 + "1" + "}" * 200, "nested too deeply"),
    ],
)
def test_c46_arguments_that_are_text_are_looked_into(arguments: str, said: str) -> None:
    """As OpenAI's files have them: a template is given the object that the text says."""
    calls = [CALL, {"type": "function", "function": {"name": "weather", "arguments": arguments}}]
    with pytest.raises(DataError, match=said) as caught:
        conversation(messages=[TURNS[0], {**TURNS[1], "tool_calls": calls}])
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("a.jsonl:7", "messages[1].tool_calls[1].function.arguments")


def test_a_call_is_trained_to_its_end_and_what_the_tool_gave_is_not() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=HERMES))
    example = example_of(renderer, conversation(), "here")
    assert trained_parts(renderer, example) == [CALLED, "Yes.<|im_end|>"]
    text = renderer.tokenizer.decode(example.input_ids)
    assert "<tools>" in text
    assert "<tool_response>rain</tool_response>" in text
    last = CausalLMRenderer.for_tokenizer(renderer.tokenizer, train_on="last")
    assert trained_parts(last, example_of(last, conversation(), "here")) == ["Yes.<|im_end|>"]


def test_what_is_asked_has_the_tools_that_the_row_was_learned_with() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=HERMES))
    task, said = TASKS["causal_lm"], conversation()
    example, reference = example_of(renderer, said, "here"), task.reference(said, ())
    assert reference is not None
    prompt = task.prompt_ids(example, reference, renderer)
    assert renderer.tokenizer.decode(example.input_ids[len(prompt) :]) == "Yes.<|im_end|>\n"
    assert example.input_ids[: len(prompt)] == prompt
    question = to_question(Row({"messages": TURNS[:3], "tools": [TOOL]}, "a.jsonl:7"))
    assert renderer.prompt_ids(question.messages, question.tools) == prompt
    named = {"conversations": [{"from": "human", "value": "Rain?"}], "tools": json.dumps([TOOL["function"]])}
    assert to_question(Row(named, "a.jsonl:7")).tools == (TOOL,)
    plain = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>"), conversations=False)
    with pytest.raises(DataError, match="no chat template"):
        plain.prompt_ids(question.messages, question.tools)


def test_a_call_with_words_before_it() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=HERMES))
    said = conversation(messages=[TURNS[0], {**TURNS[1], "content": "Let me look."}, *TURNS[2:]])
    assert trained_parts(renderer, example_of(renderer, said, "here"))[0] == "Let me look." + CALLED


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("chatml", {"messages": [TURNS[0], TURNS[3]]}, "tools"),
        ("chatml", {"tools": None}, "calls of tools"),
        ("zephyr", {"tools": None, "messages": [*TURNS[:1], TURNS[3], TURNS[2], TURNS[3]]}, "messages of tools"),
    ],
)
def test_a_template_that_would_leave_tools_out_is_refused_by_row(
    tmp_path: Path, name: str, changes: dict[str, Any], what: str
) -> None:
    row = {"messages": TURNS, "tools": [TOOL], **changes}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [TURNS[0], TURNS[3]]}) + "\n" + json.dumps(row) + "\n")

    def run(**data: Any) -> PreparedData:
        section = {"train": str(path), "eval": None, **data}
        config = RunConfig.model_validate({"model": {"name_or_path": "x"}, "data": section})
        return prepare(config, tokenizer_for(CHATS[name]))

    with pytest.raises(DataError) as caught:
        run()
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == (f"{path}:2", "data.chat_template")
    assert problem.message == f"the chat template prints no {what}: they would be lost"
    assert run(on_bad_row="skip").report.sources[0].bad == 1


def test_chatml_prints_what_a_tool_says() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_for(CHATS["chatml"]))
    said = conversation(tools=None, messages=[TURNS[0], TURNS[3], TURNS[2], TURNS[3]])
    example = example_of(renderer, said, "here")
    assert "<|im_start|>tool\nrain<|im_end|>" in renderer.tokenizer.decode(example.input_ids)
    assert trained_parts(renderer, example) == ["Yes.<|im_end|>", "Yes.<|im_end|>"]


def test_calls_in_parquet_have_the_arguments_that_they_were_given(tmp_path: Path) -> None:
    """Arrow gives the arguments of each call the names of all of them; a null would be learned as an argument."""
    path = tmp_path / "a.parquet"
    other = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    turns = [TURNS[0], {**TURNS[1], "tool_calls": [CALL, other]}, *TURNS[2:]]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns, "tools": json.dumps([TOOL])}]), path)
    (row,) = read_rows(DataSource(path=str(path))).rows
    record = to_record(row, "messages", {})
    assert isinstance(record, Conversation)
    assert record.messages[1].more == {"tool_calls": [CALL, other]}
    assert record.tools == (TOOL,)


def test_arguments_that_parquet_holds_as_a_map_are_an_object(tmp_path: Path) -> None:
    """As Spark writes them: a list of pairs would be printed as one."""
    arguments = pyarrow.map_(pyarrow.string(), pyarrow.string())
    function = pyarrow.struct([("name", pyarrow.string()), ("arguments", arguments)])
    calls = pyarrow.list_(pyarrow.struct([("type", pyarrow.string()), ("function", function)]))
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string()), ("tool_calls", calls)])
    call = {"type": "function", "function": {"name": "weather", "arguments": [("city", "Oslo")]}}
    rows = [{"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]}]
    path, schema = tmp_path / "a.parquet", pyarrow.schema([("messages", pyarrow.list_(turn))])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    (row,) = read_rows(DataSource(path=str(path))).rows
    record = to_record(row, "messages", {})
    assert isinstance(record, Conversation)
    assert record.messages[1].more["tool_calls"] == [CALL]


AS_TEXT = HERMES.replace("(call.function | tojson)", "call.function.name + call.function.arguments")
"""As DeepSeek has it: arguments are text, and an object is a TypeError."""


@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'])
@pytest.mark.parametrize(
    ("template", "called"), [(HERMES, CALLED), (AS_TEXT, '<tool_call>weather{"city": "Oslo"}</tool_call><|im_end|>')]
)
def test_arguments_are_an_object_or_text_as_the_template_takes_them(
    template: str, called: str, arguments: object
) -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=template))
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    said = conversation(messages=[TURNS[0], {**TURNS[1], "tool_calls": [call]}, *TURNS[2:]])
    assert trained_parts(renderer, example_of(renderer, said, "here"))[0] == called


def test_a_call_without_arguments_gets_none() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=HERMES))
    call = {"type": "function", "function": {"name": "weather"}}
    said = conversation(messages=[TURNS[0], {**TURNS[1], "tool_calls": [call]}, *TURNS[2:]])
    trained = trained_parts(renderer, example_of(renderer, said, "here"))[0]
    assert trained == '<tool_call>{"name": "weather"}</tool_call><|im_end|>'


def test_arguments_that_are_no_json_stay_as_they_are() -> None:
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=AS_TEXT))
    call = {"type": "function", "function": {"name": "weather", "arguments": "Oslo"}}
    said = conversation(messages=[TURNS[0], {**TURNS[1], "tool_calls": [call]}, *TURNS[2:]])
    assert "<tool_call>weatherOslo</tool_call>" in trained_parts(renderer, example_of(renderer, said, "here"))[0]


THINKS = HERMES.replace(
    "{%- if message.content %}",
    "{%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}"
    "{%- if message.content %}",
)


def test_what_was_thought_is_trained_or_refused_where_the_template_never_prints_it() -> None:
    rows = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "Yes.", "reasoning_content": "wet"}]
    said = conversation(messages=rows, tools=None)
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=THINKS))
    assert trained_parts(renderer, example_of(renderer, said, "here")) == ["<think>wet</think>Yes.<|im_end|>"]
    called = conversation(messages=[rows[0], {**rows[1], "tool_calls": [CALL]}], tools=None)
    thinks_alone = THINKS.partition("{%- for call in")[0] + "{%- endif %}{%- endfor %}"
    thinks = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=thinks_alone))
    with pytest.raises(DataError, match="prints no calls of tools"):
        example_of(thinks, called, "here")
    forgets = CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=HERMES))
    with pytest.raises(DataError, match="the chat template prints no reasoning_content: it would be lost"):
        example_of(forgets, said, "here")
    other = conversation(messages=[rows[0], {"role": "assistant", "content": "Yes.", "thinking": "wet"}], tools=None)
    named = HERMES + "{#- enable_thinking #}"
    with pytest.raises(DataError, match="prints no thinking"):
        example_of(CausalLMRenderer.for_tokenizer(tokenizer_of(IM, eos="<|im_end|>", template=named)), other, "here")


def parts_of(template: str, said: Conversation, **options: Any) -> list[str]:
    special = (*IM, "<|call|>", "<|return|>")
    renderer = CausalLMRenderer.for_tokenizer(tokenizer_of(special, eos="<|im_end|>", template=template), **options)
    return trained_parts(renderer, example_of(renderer, said, "here"))


def test_a_call_whose_thought_a_later_answer_drops_is_trained_to_its_end() -> None:
    """As gpt-oss prints it: another token ends the call, and the name is printed once more in what the tool says."""
    template = (
        "{% for m in messages %}{% if m.tool_calls %}{% if loop.last %}{{ m.reasoning_content }}{% endif %}"
        "to={{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
        "{% elif m.role == 'tool' %}{{ messages[1].tool_calls[0].function.name }}: {{ m.content }}<|im_end|>"
        "{% elif m.role == 'user' %}{{ m.content }}<|im_end|>"
        "{% else %}{{ m.content }}{{ '<|return|>' if loop.last else '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    turns = [TURNS[0], {**TURNS[1], "reasoning_content": "wet?"}, *TURNS[2:]]
    said = conversation(messages=turns, tools=None)
    assert parts_of(template, said) == ['to=weather {"city": "Oslo"}<|call|>', "Yes.<|return|>"]


def test_a_template_that_refuses_what_a_tool_says_without_a_call() -> None:
    """Where the prompt is no beginning of the row, the call is found by saying another one in its place."""
    refuses = "{%- if message.role == 'tool' %}{%- if not messages[1].tool_calls %}{{ raise_exception('no call') }}"
    asks = "{{- '<|im_start|>assistant\\n<think>\\n' }}"
    template = HERMES.replace("{%- if message.role == 'tool' %}", refuses + "{%- endif %}").replace(
        "{{- '<|im_start|>assistant\\n' }}", asks
    )
    assert parts_of(template, conversation()) == [CALLED, "Yes.<|im_end|>"]


def test_a_template_that_prints_conversations_with_tools_alone() -> None:
    """As the templates `tool_use` of Hermes and Command R are, which iterate over the tools whatever there is."""
    template = HERMES.replace("{%- if tools %}", "").replace(
        "</tools><|im_end|>\\n' }}{%- endif %}", "</tools><|im_end|>\\n' }}"
    )
    assert parts_of(template, conversation()) == [CALLED, "Yes.<|im_end|>"]
    with pytest.raises(DataError, match="not iterable"):
        parts_of(template, conversation(tools=None))


def test_words_beside_a_call_that_a_template_drops_are_named() -> None:
    template = HERMES.replace("{%- if message.content %}", "{%- if message.content and not message.tool_calls %}")
    said = conversation(messages=[TURNS[0], {**TURNS[1], "content": "Let me look."}, *TURNS[2:]])
    with pytest.raises(DataError, match="no words beside a call of tools"):
        parts_of(template, said)


def test_what_differs_inside_a_control_token_is_trained_from_its_beginning() -> None:
    """As Cohere's reasoning models have it: the prompt opens a thought, and the row calls a tool at once."""
    acts, says, thinks = "<|START_ACTION|>", "<|START_TEXT|>", "<|START_THINKING|>"
    template = (
        f"{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{% if m.tool_calls %}}{acts}"
        f"{{{{ m.tool_calls[0].function | tojson }}}}{{% else %}}{says}{{{{ m.content }}}}{{% endif %}}<|im_end|>\n"
        f"{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{thinks}{{% endif %}}"
    )
    tokenizer = tokenizer_of((*IM, acts, says, thinks), eos="<|im_end|>", template=template)
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    rendered = renderer.render(conversation(tools=None))
    (example,) = renderer.examples([rendered], ["here"])
    assert trained_parts(renderer, example)[0].startswith(acts)
    assert example.input_ids == tokenizer.apply_chat_template(TURNS, tokenize=True)["input_ids"]
    assert any(f"generation feeds {thinks!r} before the answer" in finding for finding in rendered.findings)


def test_a_tokenizer_with_a_template_of_its_own_for_tools_prints_as_transformers_does() -> None:
    """As Hermes 2 Pro, Hermes 3 and Command R have it; what is saved is one template, with both in it."""
    plain = CHATML.replace("'<|im_start|>' + m", "'~<|im_start|>' + m")
    tokenizer = tokenizer_of(IM, eos="<|im_end|>", template=plain)
    tokenizer.chat_template = {"default": f"\n {plain} \n", "tool_use": f" \n{HERMES}\n\n  \n"}  # type: ignore[assignment]
    renderer = CausalLMRenderer.for_tokenizer(tokenizer)
    for said, tools in ((conversation(), [TOOL]), (conversation(tools=None, messages=[TURNS[0], TURNS[3]]), None)):
        turns = TURNS if tools else [TURNS[0], TURNS[3]]
        printed = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
        assert renderer.tokenizer.decode(example_of(renderer, said, "here").input_ids) == printed
        asked = tokenizer.apply_chat_template(turns[:-1], tools=tools, tokenize=False, add_generation_prompt=True)
        assert renderer.tokenizer.decode(renderer.prompt_ids(said.messages[:-1], said.tools)) == asked
    assert trained_parts(renderer, example_of(renderer, conversation(), "here")) == [CALLED, "Yes.<|im_end|>"]


def test_a_call_that_is_printed_elsewhere_too_is_refused_where_that_changes_what_is_asked() -> None:
    """As a template does it that looks the name of a tool up by the call's id, where two calls have the same."""
    above = "{% if messages[-1].tool_calls %}{{ messages[-1].tool_calls[0].function.name }}{% endif %}" + HERMES
    other = {"type": "function", "function": {"name": "time", "arguments": {}}}
    turns = [*TURNS, TURNS[0], {"role": "assistant", "content": "", "tool_calls": [other]}]
    called = '<tool_call>{"name": "time", "arguments": {}}</tool_call><|im_end|>'
    assert parts_of(HERMES, conversation(messages=turns, tools=None)) == [CALLED, "Yes.<|im_end|>", called]
    with pytest.raises(DataError, match="cannot be found"):
        parts_of(above, conversation(messages=turns, tools=None))
