"""`model.add_tokens`, from a config to an adapter, plain peft, a merged model and a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from tests.adapters.setting import disturb
from tests.cli.running import loraft, refused
from tests.tiny import save_tiny, with_head_apart

TOKENS = ["<call>", "</call>"]
SIZES: dict[str, dict[str, Any]] = {
    "tied": {"vocab_size": 301, "tie_word_embeddings": True},
    "untied": {"vocab_size": 301, "tie_word_embeddings": False},
    "spare rows": {"vocab_size": 320, "tie_word_embeddings": False},
}
"""The tiny tokenizer has 300 tokens."""
TEXTS = [f"<call>look {'late ' * (number % 3)}{number}</call>" for number in range(12)]


def place(
    folder: Path, model_type: str = "llama", *, task: str = "causal_lm", method: str = "lora", **sizes: Any
) -> Path:
    save_tiny(folder / "model", model_type, **sizes)
    rows: dict[str, list[dict[str, Any]]] = {
        "causal_lm": [{"prompt": f"order {number} <call>", "completion": text} for number, text in enumerate(TEXTS)],
        "seq2seq_lm": [{"source": f"order {number} <call>", "target": text} for number, text in enumerate(TEXTS)],
        "seq_cls": [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(TEXTS)],
    }
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[task]))
    (folder / "c.yaml").write_text(
        f"task: {task}\nmethod: {method}\n"
        "model: {name_or_path: model, dtype: float32, add_tokens: [<call>, </call>]}\n"
        + ("" if method == "full" else "lora: {r: 4}\n")
        + "data: {train: train.jsonl, eval: null, max_length: 64}\n"
        "training: {output_dir: run, max_steps: 4, save_steps: 2, learning_rate: 0.01, weight_decay: 0.1}\n"
    )
    return folder


def answer(folder: Path, *words: str) -> Any:
    done = loraft(*words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def logits(model: PreTrainedModel | PeftModel, ids: torch.Tensor) -> torch.Tensor:
    given = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**given).logits
    return found


def in_plain_peft(folder: Path, made_by: Any = AutoModelForCausalLM) -> tuple[PeftModel, torch.Tensor]:
    """As the model card says it; and some ids with the new tokens among them."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "run/adapter")
    base = made_by.from_pretrained(folder / "model")
    if len(tokenizer) > len(base.get_input_embeddings().weight):
        base.resize_token_embeddings(len(tokenizer))
    ids = tokenizer("the order <call>late</call>", return_tensors="pt")["input_ids"]
    assert {300, 301} <= set(ids[0].tolist()) or {301, 302} <= set(ids[0].tolist())
    return PeftModel.from_pretrained(base, folder / "run/adapter"), ids


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIZES)
def test_an_adapter_with_new_tokens_is_the_same_in_plain_peft_and_merged(tmp_path: Path, kind: str) -> None:
    """C21: the rows are trained, of an untied head too, saved, and no other row moves."""
    folder = place(tmp_path, **SIZES[kind])
    told = " ".join(answer(folder, "check", "c.yaml")["notes"])
    assert "2 new tokens (<call>, </call>)" in told
    assert ("grow from 301 rows to 302" in told) == (kind != "spare rows")
    answer(folder, "train", "c.yaml")
    report = answer(folder, "merge", "run", "merged")
    assert report["kl_adapted_merged"] <= 1e-6
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    peft, ids = in_plain_peft(folder)
    torch.testing.assert_close(logits(merged, ids), logits(peft, ids), atol=1e-5, rtol=1e-5)
    before, after = (load_file(folder / each / "model.safetensors") for each in ("model", "merged"))
    tables = ["model.embed_tokens.weight", *(["lm_head.weight"] if kind != "tied" else [])]
    for name in tables:
        assert torch.equal(before[name][:300], after[name][:300])
        assert torch.equal(before[name][302:], after[name][302:])
        start = before[name][:300].double().mean(0).float()
        assert 1e-3 < float((after[name][300:302] - start).norm()) < 0.5, "each row moved a little from the mean"
    assert merged.config.vocab_size == max(302, SIZES[kind]["vocab_size"])
    asked = ("--prompt", "order 3 <call>", "--max-new-tokens", "6", "--temperature", "0", "--dtype", "float32")
    assert (
        answer(folder, "generate", "run", *asked)["completion"]
        == answer(folder, "generate", "merged", *asked)["completion"]
    )


def test_embeddings_of_which_peft_trains_a_copy_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """Marian's encoder looks tokens up in a table of its own name that is the one of both stacks."""
    folder = place(tmp_path, "marian", task="seq2seq_lm")
    assert "model.shared.weight" in refused(loraft("check", "c.yaml", cwd=folder))


@pytest.mark.slow
def test_new_tokens_are_merged_where_the_files_have_a_head_apart_that_the_config_ties(tmp_path: Path) -> None:
    """Loading leaves the two apart, and so the rows of both are trained; the merged model's config ties nothing."""
    folder = place(tmp_path, vocab_size=301, tie_word_embeddings=True)
    head = with_head_apart(folder / "model")
    answer(folder, "train", "c.yaml")
    assert answer(folder, "merge", "run", "merged")["kl_adapted_merged"] <= 1e-6
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert not merged.config.tie_word_embeddings
    assert torch.equal(merged.lm_head.weight[:300], head[:300])
    assert torch.equal(merged.model.embed_tokens.weight[:300], -head[:300])


@pytest.mark.parametrize(
    ("tokens", "said"), [("['<|im_end|>', <call>]", "already"), ("[<a>, <a>]", "2 times"), ("[' a']", "space")]
)
def test_what_is_no_new_token_is_refused(tmp_path: Path, tokens: str, said: str) -> None:
    folder = place(tmp_path, **SIZES["tied"])
    done = loraft("check", "c.yaml", f"model.add_tokens={tokens}", cwd=folder)
    assert said in refused(done)


def test_a_token_that_no_row_has_is_told(tmp_path: Path) -> None:
    folder = place(tmp_path, **SIZES["tied"])
    notes = answer(folder, "check", "c.yaml", "model.add_tokens=[<call>, <never>]")["notes"]
    assert [note for note in notes if "<never>: nothing will be learned" in note]


def test_a_module_that_is_trained_whole_besides_is_refused(tmp_path: Path) -> None:
    folder = place(tmp_path, **SIZES["untied"])
    assert "lm_head" in refused(loraft("check", "c.yaml", "lora.modules_to_save=[lm_head]", cwd=folder))


@pytest.mark.slow
def test_a_head_with_a_bias_and_ties_that_peft_does_not_know_are_refused(tmp_path: Path) -> None:
    folder = place(tmp_path, "phi")
    assert "bias" in refused(loraft("check", "c.yaml", cwd=folder))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path, method: str) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    folder = place(tmp_path, method=method, **SIZES["untied"], **sizes)
    for name, rest in (("one", []), ("two", ["training.max_steps=2"])):
        done = loraft("train", "c.yaml", f"training.output_dir={name}", "training.lr_scheduler_type=constant", *rest,
                      cwd=folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = loraft("train", "c.yaml", "training.output_dir=two", "training.lr_scheduler_type=constant", "--resume",
                  cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    file = "model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors"
    assert (folder / "one" / file).read_bytes() == (folder / "two" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_the_other_methods_train_new_tokens(tmp_path: Path, method: str) -> None:
    folder = place(tmp_path, method=method, **SIZES["tied"], hidden_size=64, intermediate_size=128)
    answer(folder, "train", "c.yaml")
    if method == "full":
        assert json.loads((folder / "run/model/config.json").read_text())["vocab_size"] == 302
    else:
        assert answer(folder, "merge", "run", "merged", "--dtype", "float32")["kl_adapted_merged"] <= 1e-6
    assert answer(folder, "generate", "run", "--prompt", "<call>", "--max-new-tokens", "3")["completion"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_encoder_decoders_have_the_rows_in_all_their_tables(tmp_path: Path, model_type: str) -> None:
    folder = place(tmp_path, model_type, task="seq2seq_lm", vocab_size=301)
    answer(folder, "train", "c.yaml")
    assert answer(folder, "merge", "run", "merged")["kl_adapted_merged"] <= 1e-6
    peft, ids = in_plain_peft(folder, AutoModelForSeq2SeqLM)
    merged = AutoModelForSeq2SeqLM.from_pretrained(folder / "merged")
    torch.testing.assert_close(logits(merged, ids), logits(peft, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_classifier_reads_new_tokens(tmp_path: Path) -> None:
    folder = place(tmp_path, "bert", task="seq_cls", vocab_size=301)
    answer(folder, "train", "c.yaml")
    assert answer(folder, "merge", "run", "merged")["kl_adapted_merged"] <= 1e-6
    asked = ("--text", TEXTS[0], "--dtype", "float32")
    merged, adapted = (answer(folder, "predict", target, *asked) for target in ("merged", "run"))
    assert merged["probabilities"] == pytest.approx(adapted["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_training_goes_on_from_an_adapter_with_the_same_tokens_alone(tmp_path: Path) -> None:
    folder = place(tmp_path, **SIZES["tied"])
    answer(folder, "train", "c.yaml")
    again = ("train", "c.yaml", "training.output_dir=again", "lora.start_from=run")
    assert loraft(*again, cwd=folder).returncode == 0
    other = refused(loraft(*again[:2], "training.output_dir=third", "lora.start_from=run", "model.add_tokens=[<x>]",
                           cwd=folder))  # fmt: skip
    assert "model.add_tokens" in other


@pytest.mark.slow
def test_a_run_with_new_tokens_is_evaluated_and_looked_into(tmp_path: Path) -> None:
    folder = place(tmp_path, **SIZES["untied"])
    answer(folder, "train", "c.yaml", "data.eval=0.25")
    assert answer(folder, "evaluate", "run", "--baseline")["rows"] == 3
    seen = loraft("inspect-layers", "run", cwd=folder)
    assert "lm_head.weight (2 rows)" in seen.stdout


@pytest.mark.slow
def test_peft_s_own_adapter_for_a_resized_base_loads_where_all_its_rows_were_trained(tmp_path: Path) -> None:
    folder = place(tmp_path, vocab_size=300, tie_word_embeddings=False)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(TOKENS)
    ids = tokenizer("the order <call>late</call>", return_tensors="pt")["input_ids"]
    for name, rows in (("both", {"embed_tokens": [300, 301], "lm_head": [300, 301]}), ("one", [300, 301])):
        base = AutoModelForCausalLM.from_pretrained(folder / "model")
        base.resize_token_embeddings(len(tokenizer))
        theirs = get_peft_model(
            base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=rows)
        )
        disturb({key: weight for key, weight in theirs.named_parameters() if weight.requires_grad})
        theirs.save_pretrained(folder / name, save_embedding_layers=False)
        tokenizer.save_pretrained(folder / name)
        if name == "both":
            assert answer(folder, "merge", name, "merged")["kl_adapted_merged"] <= 1e-6
            merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
            torch.testing.assert_close(logits(merged, ids), logits(theirs, ids), atol=1e-5, rtol=1e-5)
    assert "row 300 of lm_head" in refused(loraft("generate", "one", "--prompt", "<call>", cwd=folder))
