"""Training by pairs of answers becomes `task: preference`, with the loss and its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraft.errors import ConfigError
from tests.peers.translating import STARTS, become, imported
from tests.words import Wording

AXOLOTL = "base_model: a/b\nsequence_len: 8\nadapter: lora\ndatasets: [{entry}]\n"
LLAMA = "model_name_or_path: a/b\ndataset: rows\nstage: dpo\nfinetuning_type: lora\n"


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("rl: dpo\nrl_beta: 0.3", {"preference.loss": "dpo", "preference.beta": 0.3}),
        ("rl: ipo", {"preference.loss": "ipo"}),
        ("rl: orpo\norpo_alpha: 0.2", {"preference.loss": "orpo", "preference.beta": 0.2}),
        (
            "rl: simpo\nsimpo_gamma: 0.7",
            {"preference.loss": "simpo", "preference.gamma": 0.7, "preference.beta": 0.1, "preference.sft_weight": 1},
        ),
        ("rl: simpo\ncpo_alpha: 0", {"preference.sft_weight": 0}),
    ],
)
def test_losses_of_axolotl(tmp_path: Path, text: str, ours: dict[str, Any]) -> None:
    found = become(tmp_path, "axolotl", f"adapter: lora\n{text}\n")
    assert {key: found.get(key) for key in ours} == ours
    assert found["task"] == "preference"


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("", {"preference.loss": "dpo"}),
        ("pref_loss: sigmoid\npref_beta: 0.2", {"preference.loss": "dpo", "preference.beta": 0.2}),
        ("pref_loss: orpo\npref_ftx: 0.5", {"preference.loss": "orpo", "preference.sft_weight": 0.5}),
        ("pref_loss: simpo", {"preference.loss": "simpo", "preference.beta": 0.1}),
        ("dpo_label_smoothing: 0.1", {"preference.label_smoothing": 0.1}),
    ],
)
def test_losses_of_llama_factory(tmp_path: Path, text: str, ours: dict[str, Any]) -> None:
    done = imported(tmp_path, LLAMA + text)
    found = {key: value for row in done.rows for key, value in row.becomes.items()}
    assert {key: found.get(key) for key in ours} == ours
    assert done.config.task == "preference"


def test_commands_of_trl(tmp_path: Path) -> None:
    words = "--model_name_or_path a/b --dataset_name c/d --use_peft --beta 0.2"
    config = imported(tmp_path, f"trl dpo {words} --loss_type ipo", "train.sh").config
    assert (config.task, config.preference.loss, config.preference.beta) == ("preference", "ipo", 0.2)
    assert config.training.learning_rate == 1e-6
    assert imported(tmp_path, f"python x/orpo.py {words}", "train.sh").config.preference.loss == "orpo"
    assert imported(tmp_path, f"python run_dpo.py {words}", "train.sh").config.task == "preference"
    for other in ("dpo_online", "reward_modeling"):
        with pytest.raises(ConfigError, match="is a run of"):
            imported(tmp_path, f"python {other}.py {words}", "train.sh")
    plain = imported(tmp_path, f"python x/cpo.py {words} --loss_type sigmoid", "train.sh").config
    assert plain.preference.loss == "cpo"
    simple = imported(tmp_path, f"python x/cpo.py {words} --loss_type simpo", "train.sh").config
    assert (simple.preference.loss, simple.preference.sft_weight) == ("simpo", 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss_type", "[simpo]"),
        ("loss_type", "sigmoid"),
        ("loss_type", "[ipo, sft]"),
        ("beta", "0.1"),
        ("desirable_weight", "1.2"),
    ],
)
def test_a_loss_of_answers_of_trl_is_not_taken_for_one_of_examples(tmp_path: Path, key: str, value: str) -> None:
    """Several trainers have a loss of that name, and a YAML file does not say which is meant."""
    for said in ("nll", "dft"):
        assert imported(tmp_path, STARTS["trl"] + f"loss_type: {said}\n").config.task == "causal_lm"
    with pytest.raises(ConfigError, match=f"{key}: it compares answers"):
        imported(tmp_path, STARTS["trl"] + f"{key}: {value}\n")
    with pytest.raises(ConfigError, match="num_generations: there is none here"):
        imported(tmp_path, STARTS["trl"] + "num_generations: 8\nbeta: 0.04\n")


def test_a_list_of_losses_of_trl_is_its_only_one_or_refused(tmp_path: Path) -> None:
    (tmp_path / "dpo.yaml").write_text(STARTS["trl"] + "loss_type: [ipo]\n")
    assert imported(tmp_path, "trl dpo --config dpo.yaml", "train.sh").config.preference.loss == "ipo"
    for several in ("sigmoid, sft", "sigmoid, ipo", "hinge"):
        (tmp_path / "dpo.yaml").write_text(STARTS["trl"] + f"loss_type: [{several}]\n")
        with pytest.raises(ConfigError, match=f"there is no {several.replace(',', ' with')} here"):
            imported(tmp_path, "trl dpo --config dpo.yaml", "train.sh")


@pytest.mark.parametrize(
    ("entry", "columns"),
    [
        (
            "{path: a/b, type: chat_template.default, field_messages: talk, field_chosen: good}",
            {"prompt": "talk", "chosen": "good"},
        ),
        ("{path: a/b, type: chatml.intel}", {"instruction": "question"}),
        ("{path: a/b, type: chat_template.default}", {"prompt": "messages"}),
        ("{path: a/b, type: {field_prompt: ask, field_rejected: bad}}", {"prompt": "ask", "rejected": "bad"}),
        (
            "{path: a/b, type: {field_prompt: ask, field_system: s, prompt_format: '[INST] {prompt}'}}",
            {"instruction": "ask", "system": "s"},
        ),
        ("{path: a/b, type: llama3.ultra}", {}),
    ],
)
def test_rows_of_pairs_of_axolotl(tmp_path: Path, entry: str, columns: dict[str, str]) -> None:
    config = imported(tmp_path, AXOLOTL.format(entry=entry) + "rl: dpo\n").config
    assert (config.data.train[0].format, config.data.train[0].columns) == ("preferences", columns)


def test_a_type_of_answers_prints_them(tmp_path: Path) -> None:
    """`chatml.intel` is ChatML whatever the tokenizer has."""
    for kind, more, template in (
        ("chatml.intel", "", "chatml"),
        ("chatml.intel", "chat_template: own.jinja\n", "own.jinja"),
        ("llama3.intel", "", "auto"),
        ("chat_template.default", "", "auto"),
    ):
        done = imported(tmp_path, AXOLOTL.format(entry=f"{{path: a/b, type: {kind}}}") + "rl: dpo\n" + more)
        assert done.config.data.chat_template == template
        assert [row.key for row in done.rows if row.key.endswith(".type")] == ["datasets[0].type"] * ("llama3" in kind)


def test_rows_of_orpo_of_axolotl_are_whole_conversations(tmp_path: Path) -> None:
    config = imported(tmp_path, AXOLOTL.format(entry="{path: a/b, type: chat_template.argilla}") + "rl: orpo\n").config
    assert config.data.train[0].columns == {}


def test_rows_of_pairs_of_llama_factory(tmp_path: Path) -> None:
    columns = {"prompt": "ask", "query": "more", "chosen": "good", "rejected": "rejected"}
    known = {"rows": {"file_name": "r.json", "ranking": True, "columns": columns}, "plain": {"file_name": "p.json"}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(known))
    (source,) = imported(tmp_path, LLAMA).config.data.train
    assert (source.format, source.columns) == ("preferences", {"instruction": "ask", "input": "more", "chosen": "good"})
    with pytest.raises(ConfigError, match="no pairs"):
        imported(tmp_path, LLAMA.replace("dataset: rows", "dataset: plain"))


@pytest.mark.parametrize(
    "text",
    [
        STARTS["axolotl"] + "rl: dpo\n",
        STARTS["axolotl"] + "rl: kto\n",
        LLAMA + "pref_loss: hinge\n",
        "trl kto --model_name_or_path a/b --dataset_name c/d --use_peft --loss_type apo_zero_unpaired",
    ],
)
def test_what_is_another_training_is_refused(tmp_path: Path, text: str, wording: Wording) -> None:
    with pytest.raises(ConfigError) as refused:
        imported(tmp_path, text, "theirs.yaml")
    wording(str(refused.value))


@pytest.mark.parametrize(
    ("entry", "columns"),
    [
        ("{path: a/b, type: llama3.ultra}", {"instruction": "prompt"}),
        ("{path: a/b, type: chatml.argilla_chat}", {"messages": "completion"}),
        ("{path: a/b, type: {field_completion: said, field_label: good}}", {"completion": "said", "label": "good"}),
    ],
)
def test_answers_with_a_label_of_axolotl(tmp_path: Path, entry: str, columns: dict[str, str]) -> None:
    text = AXOLOTL.format(entry=entry) + "rl: kto\nrl_beta: 0.5\nkto_desirable_weight: 0.2\nmicro_batch_size: 2\n"
    config = imported(tmp_path, text).config
    assert (config.data.train[0].format, config.data.train[0].columns) == ("unpaired", columns)
    assert (config.preference.loss, config.preference.beta, config.preference.desirable_weight) == ("kto", 0.5, 0.2)


@pytest.mark.parametrize(
    ("said", "columns"),
    [
        (
            {"columns": {"kto_tag": "good"}},
            {"instruction": "instruction", "completion": "output", "label": "good"},
        ),
        (
            {"columns": {"prompt": "ask", "query": "more", "response": "said", "kto_tag": "label"}},
            {"instruction": "ask", "input": "more", "completion": "said"},
        ),
        (
            {"formatting": "sharegpt", "columns": {"messages": "talk", "kto_tag": "kto_tag"}},
            {"messages": "talk", "label": "kto_tag"},
        ),
    ],
)
def test_answers_with_a_label_of_llama_factory(tmp_path: Path, said: dict[str, Any], columns: dict[str, str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "r.json", **said}}))
    text = LLAMA.replace("stage: dpo", "stage: kto") + "pref_loss: sigmoid\nper_device_train_batch_size: 2\n"
    config = imported(tmp_path, text).config
    assert (config.preference.loss, config.data.train[0].format) == ("kto", "unpaired")
    assert config.data.train[0].columns == columns
    for stage, found in (("dpo", "a label calls good or bad|no pairs"), ("sft", "a label calls good or bad")):
        with pytest.raises(ConfigError, match=found):
            imported(tmp_path, text.replace("stage: kto", f"stage: {stage}"))


def test_kto_of_trl(tmp_path: Path) -> None:
    words = "--model_name_or_path a/b --dataset_name c/d --use_peft --per_device_train_batch_size 2"
    config = imported(tmp_path, f"trl kto {words} --desirable_weight 1.5", "train.sh").config
    assert (config.task, config.preference.loss, config.preference.desirable_weight) == ("preference", "kto", 1.5)
    assert (config.training.learning_rate, config.data.shuffle) == (1e-6, False)
    random = imported(tmp_path, f"trl kto {words} --train_sampling_strategy random", "train.sh").config
    assert random.data.shuffle is True


def test_no_dropout_acts_where_answers_are_compared(tmp_path: Path) -> None:
    """TRL's trainers of preferences switch it off (disable_dropout), and so do those that the others made of them."""
    axolotl = AXOLOTL.format(entry="{path: a/b, type: chatml.intel}") + "rl: dpo\nlora_dropout: 0.05\n"
    assert imported(tmp_path, axolotl).config.lora.dropout == 0
    assert imported(tmp_path, LLAMA + "lora_dropout: 0.1\n").config.lora.dropout == 0
    words = "--model_name_or_path a/b --dataset_name c/d --use_peft"
    for said, dropout in (("", 0), ("--lora_dropout 0.1", 0), ("--no_disable_dropout", 0.05)):
        assert imported(tmp_path, f"trl dpo {words} {said}", "train.sh").config.lora.dropout == dropout


def test_numbers_of_pairs_say_nothing_of_examples(tmp_path: Path) -> None:
    done = imported(tmp_path, STARTS["llama-factory"] + "pref_beta: 0.1\n")
    assert next(row.becomes for row in done.rows if row.key == "pref_beta") == {}
