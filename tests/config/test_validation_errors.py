"""What is wrong is said once, at the right place, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.validation_errors import advice_for_key
from tests.config.written_files import LEAST, only, problems, write


@pytest.mark.parametrize(
    ("line", "where", "key", "message", "remedy"),
    [
        (
            "lora: {r: '16'}",
            "run.yaml:3:11",
            "lora.r",
            "must be a whole number of at least 1; found the text '16'",
            "Write the number without quotes: 16.",
        ),
        (
            "training: {learning_rate: '2e-4'}",
            "run.yaml:3:27",
            "training.learning_rate",
            "must be auto or a number above 0; found the text '2e-4'",
            "Write the number without quotes: 0.0002.",
        ),
        (
            "training: {max_steps: 1_000}",
            "run.yaml:3:23",
            "training.max_steps",
            "must be a whole number of at least 1 or null; found the text '1_000'",
            "Write 1000.",
        ),
        (
            "training: {max_steps: 1e3}",
            "run.yaml:3:23",
            "training.max_steps",
            "must be a whole number of at least 1 or null; found the number 1000.0",
            "Write 1000.",
        ),
        (
            "lora: {use_dora: yes}",
            "run.yaml:3:18",
            "lora.use_dora",
            "must be true or false; found the text 'yes'",
            "Write true; YAML 1.2 reads 'yes' as text.",
        ),
        (
            "lora: {rank_pattern: {q_proj:8}}",
            "run.yaml:3:23",
            "lora.rank_pattern.q_proj:8",
            "has no value",
            "Write q_proj: 8, with a space after the colon.",
        ),
        (
            "lora: {use_dora: 1}",
            "run.yaml:3:18",
            "lora.use_dora",
            "must be true or false; found the number 1",
            None,
        ),
        (
            "method: qlroa",
            "run.yaml:3:9",
            "method",
            "must be lora, qlora or full; found the text 'qlroa'",
            "Did you mean qlora?",
        ),
        (
            "method: dora",
            "run.yaml:3:9",
            "method",
            "must be lora, qlora or full; found the text 'dora'",
            "Write method: lora and lora.use_dora: true.",
        ),
        (
            "training: {optim: adamw_torch}",
            "run.yaml:3:19",
            "training.optim",
            "must be auto, adamw, adamw_8bit, paged_adamw_8bit, paged_adamw_32bit, adafactor, lion_8bit, ademamix_8bit "
            "or muon; found the text 'adamw_torch'",
            "Here it is called adamw.",
        ),
        (
            "lora: {layers: frist:3}",
            "run.yaml:3:16",
            "lora.layers",
            "must be all, first:N, last:N, middle:N, a range like 4-11, a list like [0, 5, 31], "
            "or a mapping of encoder and decoder to one of these; "
            "found the text 'frist:3'",
            None,
        ),
        (
            "lora: {layers: 30}",
            "run.yaml:3:16",
            "lora.layers",
            "must be all, first:N, last:N, middle:N, a range like 4-11, a list like [0, 5, 31], "
            "or a mapping of encoder and decoder to one of these; found the number 30",
            "Write [30] for that layer, or last:30 for so many.",
        ),
        (
            "lora: {layers: false}",
            "run.yaml:3:16",
            "lora.layers",
            "must be all, first:N, last:N, middle:N, a range like 4-11, a list like [0, 5, 31], "
            "or a mapping of encoder and decoder to one of these; found false",
            "Put it in quotes if it is meant as text.",
        ),
        (
            "lora: {layers: [0, -1]}",
            "run.yaml:3:20",
            "lora.layers[1]",
            "must be a whole number of at least 0; found the number -1",
            None,
        ),
        (
            "training: {warmup_steps: 1.5}",
            "run.yaml:3:26",
            "training.warmup_steps",
            "must be a whole number of steps, or a share of all steps below 1; found the number 1.5",
            None,
        ),
        (
            "training: {learning_rate: .inf}",
            "run.yaml:3:27",
            "training.learning_rate",
            "must be auto or a number above 0; found the number inf",
            None,
        ),
        (
            "training: {max_steps: none}",
            "run.yaml:3:23",
            "training.max_steps",
            "must be a whole number of at least 1 or null; found the text 'none'",
            "Did you mean null?",
        ),
        (
            "training: {run_name: 2024}",
            "run.yaml:3:22",
            "training.run_name",
            "must be text or null; found the number 2024",
            "Put it in quotes if it is meant as text.",
        ),
        (
            "training: {sample_prompts: Hello}",
            "run.yaml:3:28",
            "training.sample_prompts",
            "must be a list of texts; found the text 'Hello'",
            "Write a list, even of one, in brackets.",
        ),
        (
            "lora:",
            "run.yaml:3:1",
            "lora",
            "is an empty section",
            "Indent its keys beneath it, or remove lora.",
        ),
        (
            "training: {early_stopping_patience: -1, seed: 3}",
            "run.yaml:3:37",
            "training.early_stopping_patience",
            "must be a whole number of at least 1 or null; found the number -1",
            None,
        ),
    ],
)
def test_a_wrong_value(tmp_path: Path, line: str, where: str, key: str, message: str, remedy: str | None) -> None:
    first = problems(write(tmp_path, LEAST + line + "\n"))[0]
    assert (first.where, first.key, first.message, first.remedy) == (where, key, message, remedy)


@pytest.mark.parametrize(
    ("sources", "where", "key", "words"),
    [
        ("eval: {path: x, weight: heavy}", "run.yaml:2:45", "data.eval.weight", "a number above 0"),
        ("eval: [x, {path: y, wieght: 2}]", "run.yaml:2:41", "data.eval[1].wieght", "no key of loraft"),
        ("eval: {path: x, '0': 1}", "run.yaml:2:37", "data.eval.0", "no key of loraft"),
        ("eval: [x, {splt: y}]", "run.yaml:2:31", "data.eval[1].path", "is missing"),
        ("eval: [x, 5]", "run.yaml:2:31", "data.eval[1]", "must be a path, or a mapping of path"),
        ("eval: 5", "run.yaml:2:27", "data.eval", "like data.train, a fraction above 0 and below 1, or null"),
        ("eval: []", "run.yaml:2:27", "data.eval", "found an empty list"),
        ("eval: ''", "run.yaml:2:27", "data.eval", "like data.train"),
        ("eval: true", "run.yaml:2:27", "data.eval", "found true"),
    ],
)
def test_a_union_gives_one_problem_at_the_right_place(
    tmp_path: Path, sources: str, where: str, key: str, words: str
) -> None:
    found = problems(write(tmp_path, f"model: {{name_or_path: a/b}}\ndata: {{train: rows, {sources}}}\n"))
    assert (found[0].where, found[0].key) == (where, key)
    assert words in found[0].message


def test_what_is_missing_is_named_with_where_to_add_it(tmp_path: Path) -> None:
    model, data = problems(write(tmp_path, "seed: 3\ndata: {eval: null}\n"))
    assert (model.where, model.key, model.remedy) == ("run.yaml", "model", "Add model: with name_or_path beneath it.")
    assert (data.where, data.key, data.remedy) == ("run.yaml:2:1", "data.train", "Add train: … under data:.")


def test_more_problems_than_anybody_reads_are_counted(tmp_path: Path) -> None:
    text = "".join(f"k{n}: {n}\n" for n in range(3_000)) + "seed: many\nlora: {r: 0}\n"
    found = problems(write(tmp_path, text))
    assert [problem.key for problem in found[:3]] == ["model", "data", "k0"]
    assert (found[99].key, found[100].message) == ("k97", "and 2904 more problems")


def test_a_section_given_as_text(tmp_path: Path) -> None:
    problem = only(write(tmp_path, "model: a/b\ndata: {train: x}\n"))
    assert problem.message == "must be a section, with its keys indented beneath it; found the text 'a/b'"
    assert "model.name_or_path: a/b" in str(problem.remedy)


def test_values_that_do_not_go_together(tmp_path: Path) -> None:
    text = "model: {name_or_path: a/b}\ndata: {train: x, eval: null}\ntraining:\n  early_stopping_patience: 2\n"
    problem = only(write(tmp_path, text))
    assert (problem.where, problem.key) == ("run.yaml:4:3", "training.early_stopping_patience")
    assert problem.message == "needs an evaluation, and data.eval is null"


def test_values_that_do_not_go_together_are_found_beside_wrong_ones(tmp_path: Path) -> None:
    text = "model: {}\ndata: {eval: null}\ntraining:\n  early_stopping_patience: 2\n  max_steps: 0\nlora: 3\n"
    keys = [problem.key for problem in problems(write(tmp_path, text))]
    assert keys == [
        "model.name_or_path",
        "data.train",
        "training.early_stopping_patience",
        "training.max_steps",
        "lora",
    ]


def test_a_wrong_value_does_not_contradict_besides(tmp_path: Path) -> None:
    text = "model: {name_or_path: a/b}\ndata: {train: x, eval: null}\ntraining: {early_stopping_patience: 0}\n"
    assert "at least 1" in only(write(tmp_path, text)).message


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("0", "Write null for no evaluation."),
        ("false", "Write null for no evaluation."),
        ("nul", "Did you mean null?"),
        ("None", "Did you mean null?"),
    ],
)
def test_no_evaluation_is_null(tmp_path: Path, value: str, remedy: str) -> None:
    problem = only(write(tmp_path, LEAST), [f"data.eval={value}"])
    assert problem.message.startswith("must be like data.train, a fraction above 0 and below 1, or null; found ")
    assert (problem.key, problem.remedy) == ("data.eval", remedy)


@pytest.mark.parametrize("word", ["adam", "cosine_with_restarts"])
def test_a_word_of_other_tools_where_no_word_is_taken(tmp_path: Path, word: str) -> None:
    problem = only(write(tmp_path, LEAST), [f"lora.r={word}"])
    assert (problem.key, problem.remedy) == ("lora.r", None)


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        (("lora", "alhpa"), "Did you mean lora.alpha?"),
        (("trainning",), "Did you mean training?"),
        (("model", "name"), "Did you mean model.name_or_path?"),
        (("data", "train", 1, "wieght"), "Did you mean data.train[1].weight?"),
        (("learning_rate",), "It belongs to another level: write training.learning_rate."),
        (("training", "seed"), "It belongs to another level: write seed."),
        (("training", "max_length"), "It belongs to another level: write data.max_length."),
        (("max_step",), "Did you mean training.max_steps?"),
        (("lora.r",), "Keys are nested: write lora: and, indented beneath it, r."),
        (("data", "train", 0, "type"), "Write format."),
        (("generation", "zzz"), "Known keys in generation: max_new_tokens, temperature."),
    ],
)
def test_what_to_write_instead(path: tuple[str | int, ...], advice: str) -> None:
    assert advice_for_key(path, 1) == advice


def test_at_the_top_every_section_is_listed() -> None:
    assert advice_for_key(("zzz",), None) == (
        "Known keys at the top: task, method, seed, model, quantization, lora, data, training, preference, generation, "
        "distributed."
    )
