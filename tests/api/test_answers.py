"""What a program may give the functions that answer; `docs/python.md` runs as a test of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import loraft
from loraft import GenerationRequest
from tests.tiny import save_tiny

SHORT = GenerationRequest(max_new_tokens=3, temperature=0)


def test_a_folder_is_a_target_as_its_name_is(tmp_path: Path) -> None:
    """A result of training has its folder as a path."""
    folder = save_tiny(tmp_path / "model")
    named = loraft.generate(str(folder), prompt="hello", options=SHORT).completion
    assert loraft.generate(folder, prompt="hello", options=SHORT).completion.token_ids == named.token_ids
    opened = loraft.load(folder)
    assert isinstance(opened, loraft.api.OpenModel)
    assert opened.generate("hello", options=SHORT).completion.token_ids == named.token_ids


def test_a_text_alone_is_one_prompt_and_not_its_letters(tmp_path: Path) -> None:
    (answer,) = loraft.complete(save_tiny(tmp_path / "model"), prompts="hello", options=SHORT)
    assert "hello" in answer.prompt


def test_files_may_be_given_by_their_names(tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text('{"prompt": "hello"}\n')
    loraft.answer_file(save_tiny(tmp_path / "model"), prompts=str(prompts), output=str(output), options=SHORT)
    assert json.loads(output.read_text())["prompt"] == "hello"
