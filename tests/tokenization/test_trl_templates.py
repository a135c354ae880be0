"""What is trained of conversations that real models' templates print, against TRL's marks in the same templates.

TRL ships the chat templates of models, `X.jinja`, and a copy of most for training, `X_training.jinja`, that marks with
`{% generation %}` what the assistant wrote. What is trained with the first, where nothing is marked, must be what the
second marks, white space around it aside. Where it is not, the difference stands in `DIFFERENT`, with its reason.
"""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from loraft.errors import DataError
from loraft.rows.formats import to_record
from loraft.rows.row import Row
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from tests.tokenization.chats import example_of, tokenizer_of
from tests.tokenization.test_assistant_mask import trained_parts

TRL = find_spec("trl")
FOLDER = Path(TRL.origin or "").parent / "chat_templates" if TRL is not None else Path("trl")
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
TOKEN = re.compile(r"<\|[^|<>\s]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_\w+>|\[/?INST\]")
ENDS = ("<|im_end|>", "<|eot_id|>", "<|END_OF_TURN_TOKEN|>", "</s>")

WITHOUT = {"gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "llama3_1", "llama3_2"}
"""TRL marks nothing in them, and has no copy that it does."""
LISTS = {"idefics3", "llava_next", "smolvlm"}
"""They take contents as lists of parts, as for images, and print none that are text."""
CLOSED = {"glm4moe"}
"""They end no last answer: TRL's copy does, and so does what is trained here."""
HEADER = "TRL marks the header of an answer too, which the generation prompt feeds"
THINKS = "TRL marks the beginning of the thought too, which the generation prompt feeds"
KEPT = "TRL's copy prints an empty thought in earlier answers too, and the model's own template does not"
DIFFERENT: dict[str, tuple[str, str, str]] = {
    "deepseek_r1_distill": (HEADER, "<｜Assistant｜>", ""),
    "deepseekv3": (HEADER, "<｜Assistant｜>|<｜tool▁outputs▁end｜>", ""),
    "muse_glimmer": (HEADER, r"<\|start\|>assistant", ""),
    "gptoss": (
        f"{HEADER}, and the <|end|> of earlier answers, with which a last one does not end",
        r"<\|start\|>assistant", r"\s*<\|end\|>",
    ),
    "diffusion_gemma": (
        "a call is trained to the token that asks for the tool's answer, behind which no prompt prints a header",
        r"<\|turn>model\n", r"<\|tool_response>",
    ),
    "qwen2_5": ("TRL marks the line end of the header too", "\n", ""),
    "phi3": ("TRL marks the end of the text too, behind the end of the last turn", "", "\n</s>"),
    "phi3_5": ("TRL marks the end of the text too, behind the end of the last turn", "", "\n</s>"),
    "qwen3": (KEPT, "<think>\n\n</think>\n\n", ""),
    **dict.fromkeys(
        ["qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8"],
        (f"{THINKS}; {KEPT}", "<think>\n\n</think>\n\n|<think>\n|\n</think>\n\n", ""),
    ),
    **dict.fromkeys(
        ["nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "nemotron_3_5_lightning"],
        (THINKS, "<think>\n|<think></think>", ""),
    ),
}  # fmt: skip
"""By template the reason, and what may be more before and behind what the other one has, as regular expressions."""
TOOL = {
    "type": "function",
    "function": {
        "name": "weather", "description": "rain or sun",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}},
    },
}  # fmt: skip
FUNCTION = {"name": "weather", "arguments": {"city": "Oslo"}}
CALL = {"type": "function", "id": "call00001", "function": FUNCTION}
ASKED, ANSWERED = {"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}
LAST = {"role": "assistant", "content": "last answer"}
CALLED: list[dict[str, Any]] = [
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "sun"},
    LAST,
]
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [ASKED, ANSWERED]},
    "three turns": {"messages": [ASKED, ANSWERED, ASKED, ANSWERED, ASKED, LAST]},
    "a system message": {"messages": [{"role": "system", "content": "be brief"}, ASKED, ANSWERED]},
    "an open question": {"messages": [ASKED, ANSWERED, ASKED]},
    "a thought": {"messages": [ASKED, ANSWERED, ASKED, {**LAST, "reasoning_content": "a thought"}]},
    "a call": {"messages": CALLED},
    "a call of a tool": {"messages": CALLED, "tools": [TOOL]},
    "blanks and lines": {"messages": [ASKED, {**ANSWERED, "content": "  one\n\n  two "}, ASKED, ANSWERED]},
    "words of headers": {"messages": [{**ASKED, "content": "assistant"}, {**ANSWERED, "content": "assistant\nuser"}]},
}


def printed(tokenizer: Any, row: dict[str, Any], template: str, **options: Any) -> Any:
    """What transformers makes of a row, with the arguments of calls as text where it must be; None of one refused."""
    as_text = {**CALL, "function": {**FUNCTION, "arguments": '{"city": "Oslo"}'}}
    for call in (CALL, as_text):
        turns = [{**turn, "tool_calls": [call]} if "tool_calls" in turn else turn for turn in row["messages"]]
        if template in (TEMPLATES[name + copy] for name in LISTS for copy in ("", "_training")):
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        with suppress(TemplateError, TypeError):
            return tokenizer.apply_chat_template(
                turns, tools=row.get("tools"), chat_template=template, return_dict=True, **options
            )
    return None


def is_left_out(tokenizer: Any, row: dict[str, Any], template: str) -> bool:
    """Whether a template prints a row without something that it says, or not at all."""
    found = printed(tokenizer, row, template)
    text = "" if found is None else tokenizer.decode(found["input_ids"])
    turns = row["messages"]
    said = [turn.get(key, "").strip() for turn in turns for key in ("content", "reasoning_content")]
    said += ["Oslo" for turn in turns if "tool_calls" in turn] + ["rain or sun" for _ in row.get("tools", ())]
    return not all(each in text for each in said)


def without(parts: list[str], before: str, behind: str) -> list[str]:
    """What is trained or marked, without what may be more, and without white space behind it."""
    return [re.sub(rf"^(?:{before})|\s*(?:{behind})?\s*$", "", part) for part in parts]


def test_every_template_has_marks_or_is_listed() -> None:
    assert TEMPLATES
    unmarked = {name for name, text in TEMPLATES.items() if not MARK.search(text)}
    assert {name for name in unmarked if f"{name}_training" not in TEMPLATES} == WITHOUT


@pytest.mark.slow_after(10)
@pytest.mark.parametrize("name", [name for name, text in TEMPLATES.items() if MARK.search(text)])
def test_c3_what_is_trained_is_what_trl_marks(name: str) -> None:
    marked, plain = TEMPLATES[name], name.removesuffix("_training")
    original = TEMPLATES[plain] if plain != name else MARK.sub("", marked)
    tokens = tuple(dict.fromkeys([*TOKEN.findall(original + marked), "<s>", "</s>"]))
    tokenizer = tokenizer_of(tokens, eos=next(end for end in ENDS if end in tokens), bos="<s>", template=original)
    _, before, behind = DIFFERENT.get(plain, ("", "", ""))
    compared = 0
    for which, row in CONVERSATIONS.items():
        record = to_record(Row(row, "rows.jsonl:1"), "messages", {})
        found = printed(tokenizer, row, marked, return_assistant_tokens_mask=True)
        for template, aside in ((original, (before, behind)), (marked, ("", ""))):
            tokenizer.chat_template = template
            try:
                renderer = CausalLMRenderer.for_tokenizer(tokenizer)
                example = example_of(renderer, record, "rows.jsonl:1")
            except DataError:
                assert is_left_out(tokenizer, row, template), (which, template == marked)
                continue
            assert example.input_ids == printed(tokenizer, row, marked if plain in CLOSED else template)["input_ids"]
            pairs = groupby(zip(found["input_ids"], found["assistant_masks"], strict=True), key=lambda pair: pair[1])
            theirs = [tokenizer.decode([token for token, _ in run]) for is_marked, run in pairs if is_marked]
            ours = trained_parts(renderer, example)
            assert without(ours, *aside) == without(theirs, *aside), (which, template == marked)
            compared += 1
    assert compared
