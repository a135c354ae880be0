"""What was learned is what generation asks for: eight rows over-fitted are answered exactly, whatever the template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from loraft import api
from loraft.config.schema import RunConfig
from loraft.inference.requests import GenerationRequest
from tests.tiny import tiny_model
from tests.tokenization.chats import CHATML, HEADER_ENDS_IN_SPACE, qwen_tokenizer, tokenizer_of

QUESTIONS = ("What is two", "two and two", "four", "the user", "a", "is it", "And three", "user")
ANSWERS = ("ok yes", "four", "It is", "no", "two", "the model", "five", "said")


def chats(answers: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in zip(QUESTIONS, answers, strict=True)
    ]


def completions(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]


CASES: dict[str, tuple[PreTrainedTokenizerFast, list[dict[str, Any]]]] = {
    "chatml": (qwen_tokenizer(CHATML), chats(ANSWERS)),
    "header ends in a space": (tokenizer_of(("</s>",), eos="</s>", template=HEADER_ENDS_IN_SPACE), chats(ANSWERS)),
    "answers begin with a line end": (qwen_tokenizer(CHATML), chats(tuple(f"\n{said}" for said in ANSWERS))),
    "completions that go on with a word": (
        tokenizer_of(("</s>",), eos="</s>"),
        completions(*((asked, said) for asked, said in zip(QUESTIONS, ANSWERS, strict=True))),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_c5_eight_rows_are_answered_exactly(tmp_path: Path, name: str) -> None:
    tokenizer, rows = CASES[name]
    folder = tmp_path / "model"
    tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    api.train(
        RunConfig.model_validate(
            {
                "model": {"name_or_path": str(folder), "dtype": "float32"},
                "method": "full",
                "data": {"train": str(path), "eval": None},
                "training": {
                    "output_dir": str(tmp_path / "run"), "max_steps": 150, "per_device_train_batch_size": 8,
                    "learning_rate": 0.01, "lr_scheduler_type": "constant", "warmup_steps": 0,
                },
            }
        )
    )  # fmt: skip
    asked = [row["prompt"] if "prompt" in row else row["messages"][0]["content"] for row in rows]
    expected = [row["completion"] if "completion" in row else row["messages"][1]["content"] for row in rows]
    answers = api.complete(str(tmp_path / "run"), prompts=asked, options=GenerationRequest(max_new_tokens=20))
    assert [answer.completion for answer in answers] == expected
    assert {answer.finish_reason for answer in answers} == {"stop"}
