"""A classifier's head: found, begun, trained, saved and reloaded, by loraft and by peft's own three lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from loraft.adapters.inject import AdaptedModel
from loraft.adapters.save_adapter import save_adapter, save_full
from loraft.config.schema import RunConfig
from loraft.config.sections import ModelSection
from loraft.errors import AdapterError, InvalidInputError, ModelError
from loraft.inference.classifier import Classifier, open_classifier
from loraft.inference.requests import ModelRequest
from loraft.models.base_files import base_files, require_tensors
from loraft.models.load_model import load_config
from loraft.models.quantize import quantized_modules
from loraft.models.registry import CLASSIFIERS
from loraft.planning.run_plan import plan_run
from loraft.tokenization.examples import Example
from loraft.training.built_model import build_model
from tests.adapters.setting import FACTS, disturb
from tests.tiny import tiny_sizes, tiny_tokenizer
from tests.training.classifiers import LABELS, SOME, classifier_config, labelled_rows

TEXTS = [(row["text"], None) for row in labelled_rows(9)]


def trained(config: RunConfig, folder: Path) -> AdaptedModel:
    """A model as a few steps would leave it, saved to `folder`."""
    plan = plan_run(config)
    adapted = build_model(plan)
    disturb(adapted.trainable)
    save = save_full if config.method == "full" else save_adapter
    save(adapted, folder, config=plan.config, renderer=plan.data.renderer, facts=FACTS)
    adapted.set_training(False)
    return adapted


def scores(adapted: AdaptedModel, opened: Classifier) -> torch.Tensor:
    """The scores of the model that was trained, for the rows as `opened` makes them."""
    return logits(Classifier(adapted.loaded, adapted.model, opened.renderer, None, None, None, ()))


def logits(classifier: Classifier, texts: list[tuple[str, None]] = TEXTS) -> torch.Tensor:
    """The scores of texts, as `probabilities` has them."""
    return classifier.scores([Example.of_class(each.ids, 0, "", each.types) for each in classifier.tokens(texts)])


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("model_type", SOME)
def test_c20_what_was_saved_gives_identical_logits(tmp_path: Path, model_type: str, method: str) -> None:
    """C20: reloaded from the adapter alone, base and classes found by it."""
    adapted = trained(classifier_config(tmp_path, model_type, method=method), tmp_path / "saved")
    opened = open_classifier(ModelRequest(str(tmp_path / "saved"), dtype="float32" if method == "full" else None))
    assert opened.labels == tuple(sorted(LABELS))
    assert torch.equal(scores(adapted, opened), logits(opened))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("model_type", SOME)
def test_c20_pefts_three_lines_give_the_same_logits(tmp_path: Path, model_type: str) -> None:
    """C20: whoever loads it with peft gets the head that was trained, and nothing in the folder names what is not."""
    adapted = trained(classifier_config(tmp_path, model_type), tmp_path / "saved")
    opened = open_classifier(ModelRequest(str(tmp_path / "saved")))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3)
    model = PeftModel.from_pretrained(base, str(tmp_path / "saved")).eval()
    rows = opened.tokens(TEXTS)
    with torch.no_grad():
        theirs = torch.cat([model(input_ids=torch.tensor([row.ids])).logits for row in rows])
    torch.testing.assert_close(scores(adapted, opened), theirs, rtol=1e-5, atol=1e-5)
    written = json.loads((tmp_path / "saved/adapter_config.json").read_text())
    head = [module.rpartition(".")[2] for module in adapted.loaded.family.classifier]
    assert written["modules_to_save"] == sorted(head)
    assert written["task_type"] == "SEQ_CLS"


def test_c20_the_cards_code_loads_an_adapter_on_a_base_with_another_head(tmp_path: Path) -> None:
    """C20: a base that was a classifier of two classes; as the card had it, transformers refused to load it."""
    config = classifier_config(tmp_path)
    classifier_of(tmp_path / "model", num_labels=2)
    adapted = trained(config, tmp_path / "saved")
    code = (tmp_path / "saved/README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(
        code.replace("path/to/adapter", str(tmp_path / "saved")).replace('("model"', f'("{tmp_path / "model"}"'), found
    )
    opened = open_classifier(ModelRequest(str(tmp_path / "saved")))
    with torch.no_grad():
        rows = (torch.tensor([row.ids]) for row in opened.tokens(TEXTS))
        theirs = torch.cat([found["model"](input_ids=ids).logits for ids in rows])
    torch.testing.assert_close(scores(adapted, opened), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow_after(7)
@pytest.mark.parametrize("model_type", list(CLASSIFIERS))
def test_c20_new_modules_are_those_that_transformers_reports(tmp_path: Path, model_type: str) -> None:
    """C20: what transformers says that it made up is what is trained as new, for every family."""
    config = classifier_config(tmp_path, model_type)
    family = CLASSIFIERS[model_type]
    as_classifier = load_config(config.model, "classifier", LABELS)
    _, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", num_labels=3, output_loading_info=True
    )
    tensors = require_tensors(base_files(as_classifier, tmp_path / "model"), LABELS)
    assert (new := tensors.new)
    assert {header.name for header in tensors.unused} == set(report["unexpected_keys"])
    assert all(key.startswith(tuple(f"{module}." for module in new)) for key in report["missing_keys"])
    assert {m for m in family.classifier if any(k.startswith(f"{m}.") for k in report["missing_keys"])} == set(new)


@pytest.mark.slow
def test_a_head_for_the_same_classes_stays_and_one_for_others_is_new(tmp_path: Path) -> None:
    adapted = trained(classifier_config(tmp_path, method="full"), tmp_path / "run/model")
    again = classifier_config(tmp_path / "again", model__name_or_path=str(tmp_path / "run/model"),
                              data__train=str(tmp_path / "train.jsonl"))  # fmt: skip
    kept = build_model(plan_run(again))
    assert kept.loaded.new_modules == ()
    before = adapted.loaded.model.get_submodule("classifier").state_dict()
    assert torch.equal(kept.loaded.model.classifier.original_module.weight, before["weight"])
    other = again.model_copy(
        update={"data": again.data.model_copy(update={"labels": ("fine", "late", "other", "rude")})}
    )
    plan = plan_run(other)
    fresh = build_model(plan)
    assert fresh.loaded.new_modules == ("classifier",)
    assert fresh.loaded.model.config.num_labels == 4
    assert any("begins anew" in note for note in plan.notes)


@pytest.mark.slow
def test_start_from_a_classifier_of_other_classes_is_refused(tmp_path: Path) -> None:
    """As many classes under other names: the head would begin with what is right for others."""
    trained(classifier_config(tmp_path), tmp_path / "saved")
    start = {"lora__start_from": str(tmp_path / "saved")}
    plan = plan_run(classifier_config(tmp_path, **start))
    build_model(plan)
    told = [
        note for note in plan.notes if "head for classes" in note
    ]  # it said that the head begins with random numbers
    assert told == ["the head for classes is that of lora.start_from, and training goes on with it"]
    with pytest.raises(InvalidInputError) as error:  # by check too
        plan_run(classifier_config(tmp_path, **start, data__labels=LABELS[::-1]))
    assert "data.labels" in [problem.key for problem in error.value.problems]


@pytest.mark.slow
def test_the_head_begins_as_a_function_of_the_seed(tmp_path: Path) -> None:
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(99 - len(starts))
        adapted = build_model(plan_run(classifier_config(tmp_path, seed=seed)))
        starts.append(adapted.trainable["base_model.model.classifier.modules_to_save.default.weight"].clone())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert 0.005 < starts[0].std() < 0.05


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("model_type", SOME)
def test_the_head_is_not_quantized(tmp_path: Path, model_type: str) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    adapted = build_model(plan_run(classifier_config(tmp_path, model_type, method="qlora")))
    model = adapted.loaded.model
    packed = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert packed
    assert not [name for name in packed if name.startswith(adapted.loaded.family.classifier)]
    assert {name.removesuffix(".base_layer") for name in packed} == {
        name.removesuffix(".base_layer")
        for name in quantized_modules(model)
        if not any(part in name for part in ("lora_", "modules_to_save", "original_module"))
    }


def test_an_adapter_without_the_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    trained(classifier_config(tmp_path), tmp_path / "saved")
    written = json.loads((tmp_path / "saved/adapter_config.json").read_text())
    (tmp_path / "saved/adapter_config.json").write_text(json.dumps({**written, "modules_to_save": ["classifier"]}))
    file = tmp_path / "saved/adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "pooler" not in key}, file)
    with pytest.raises(AdapterError, match=r"neither the adapter nor its base has bert\.pooler"):
        open_classifier(ModelRequest(str(tmp_path / "saved")))


def test_an_adapter_of_another_tool_tells_how_many_classes_there_are(tmp_path: Path) -> None:
    adapted = trained(classifier_config(tmp_path), tmp_path / "saved")
    (tmp_path / "saved/loraft.json").unlink()
    opened = open_classifier(ModelRequest(str(tmp_path / "saved"), dtype="float32"))
    assert opened.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert torch.equal(scores(adapted, opened), logits(opened))


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    classifier_config(tmp_path, "llama")
    with pytest.raises(ModelError, match="has no head that tells classes"):
        open_classifier(ModelRequest(str(tmp_path / "model")))


def classifier_of(folder: Path, **sizes: Any) -> Path:
    """A model that classifies by itself."""
    config = AutoConfig.for_model("bert", **tiny_sizes("bert", **sizes))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_names_of_classes_follow_their_numbers_not_the_file(tmp_path: Path) -> None:
    """Many a config.json on the Hub has 10 before 2: the eleventh score would get the third one's name."""
    names = [f"class {number}" for number in range(12)]
    folder = classifier_of(tmp_path, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = dict(sorted(config["id2label"].items()))
    assert list(config["id2label"])[2] == "10"
    (folder / "config.json").write_text(json.dumps(config))
    assert open_classifier(ModelRequest(str(folder))).labels == tuple(names)
    section = ModelSection(name_or_path=str(folder))
    as_classifier = load_config(section, "classifier", names)
    assert require_tensors(base_files(as_classifier, folder), names).new == ()


def test_two_classes_without_names_are_told_apart(tmp_path: Path) -> None:
    """Transformers writes no id2label where it has its own names; the head was said to be lacking."""
    folder = classifier_of(tmp_path)
    assert "id2label" not in json.loads((folder / "config.json").read_text())
    opened = open_classifier(ModelRequest(str(folder), dtype="float32"))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    (row,) = opened.tokens(TEXTS[:1])
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([row.ids])).logits
    assert opened.labels == ("LABEL_0", "LABEL_1")
    torch.testing.assert_close(logits(opened, TEXTS[:1]), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_labels": 1}, "gives a text a number"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "may hold of one text"),
        ({"id2label": {0: "x", 1: "x"}}, "several classes of the name x"),
    ],
)
def test_a_head_that_chooses_no_class_is_refused(tmp_path: Path, sizes: dict[str, Any], message: str) -> None:
    """Softmax would call the one number of a regression 100 %, and share a text among classes that all hold."""
    with pytest.raises(ModelError, match=message):
        open_classifier(ModelRequest(str(classifier_of(tmp_path, **sizes))))
