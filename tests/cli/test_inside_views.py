"""`loraft inspect-layers` with `--activations`, `--gradients` and `--plot`: what is told, drawn and refused."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from loraft.cli.app import app
from loraft.cli.views import layer_plots, plots
from loraft.cli.views.inside_view import gradients_view
from tests.cli.conftest import config_text
from tests.cli.test_inspect_layers import adapter, document, inspect
from tests.tiny import mostly_slow, save_tiny
from tests.words import Wording

PROMPT = "the customer said that the order is late"
HEAD = {"head", "entropy", "entropy_share", "distance", "distance_past_first", "first_token"}
PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(method: str = "lora") -> str:
    save_tiny(Path("model"))
    rows = [{"prompt": "the order", "completion": " is late and the answer"}, {"prompt": "the", "completion": " text"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    Path("run.yaml").write_text(config_text(method=method))
    return "run.yaml"


def train(*words: str) -> None:
    result = CliRunner().invoke(app, ["train", *words], prog_name="loraft")
    assert result.exit_code == 0, result.stderr


def test_activations_are_a_section_beside_the_anatomy() -> None:
    save_tiny(Path("tiny"))
    plain, found = document("tiny"), document("tiny", "--activations", PROMPT)
    assert {key: found[key] for key in plain if key != "notes"} == {key: plain[key] for key in plain if key != "notes"}
    told = found["activations"]
    assert told.keys() == {"model", "read", "answer", "first_token", "stacks", "layers"}
    assert PROMPT in told["read"]
    assert "<|im_start|>" in told["read"], "as the chat template prints it"
    assert told["answer"] is None
    assert [stack["causal"] for stack in told["stacks"]] == [True]
    assert [layer["index"] for layer in told["layers"]] == [0, 1, 2]
    assert all(head.keys() == HEAD for layer in told["layers"] for head in layer["heads"])
    assert [len(layer["heads"]) for layer in told["layers"]] == [4, 4, 4]


@pytest.mark.slow
def test_activations_are_read_in_eighty_columns(monkeypatch: pytest.MonkeyPatch, wording: Wording) -> None:
    from loraft.cli import console

    save_tiny(Path("tiny"))
    monkeypatch.setattr(console, "PIPE_WIDTH", 80)
    monkeypatch.setenv("COLUMNS", "80")
    result = inspect("tiny", "--activations", PROMPT)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "decoder: the residual stream" in result.stdout
    assert "parameters" not in result.stdout, "what was asked for, alone"
    wording(titles(result.stdout))
    every = inspect("tiny", "--activations", PROMPT, "--every").stdout
    assert [line.split()[0] for line in every.split("every head")[1].splitlines() if "." in line][:5] == [
        "0.0", "0.1", "0.2", "0.3", "1.0"
    ]  # fmt: skip


def titles(text: str) -> str:
    """The lines that are titles or headings, which no numbers are in."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line and not any(map(str.isdecimal, line)))


@pytest.mark.slow
def test_both_stacks_of_an_encoder_decoder_and_what_lies_between() -> None:
    save_tiny(Path("t5"), "t5")
    told = document("t5", "--activations", PROMPT)["activations"]
    assert [(stack["name"], stack["causal"]) for stack in told["stacks"]] == [("encoder", False), ("decoder", True)]
    assert told["answer"], "the decoder reads an answer of its own"
    assert [bool(layer["cross_heads"]) for layer in told["layers"]] == [False, False, False, True, True]
    assert told["layers"][-1]["cross_heads"][0]["distance"] is None
    text = inspect("t5", "--activations", PROMPT).stdout
    assert "decoder attention to the source" in text
    assert "tokens away" in text
    assert "its own greedy answer" in text


@pytest.mark.slow
def test_an_adapter_reads_as_it_was_trained(here: Path) -> None:
    adapter(here / "one")
    moved, base = document("one", "--activations", PROMPT), document("base", "--activations", PROMPT)
    assert moved["adapters"]
    assert moved["activations"]["layers"][2]["norm"] != base["activations"]["layers"][2]["norm"]
    both = inspect("--adapter", "a=one", "--adapter", "b=one", "--activations", PROMPT)
    assert "a is measured, and b not" in both.stderr


def test_an_encoder_without_a_head_reads_too(here: Path) -> None:
    from loraft.models.auto_model import AutoModel
    from tests.tiny import tiny_model

    save_tiny(here / "bert", "bert")
    AutoModel.from_config(tiny_model("bert").config).save_pretrained(here / "bert")
    told = document("bert", "--activations", PROMPT)["activations"]
    assert [stack["causal"] for stack in told["stacks"]] == [False]
    assert told["read"] == PROMPT


@pytest.mark.slow
def test_a_classifier_reads_a_text(here: Path) -> None:
    from loraft.models.auto_model import AutoModelForSequenceClassification
    from tests.tiny import tiny_model

    save_tiny(here / "classifier", "bert")
    settings = tiny_model("bert").config
    settings.id2label, settings.label2id = {0: "late", 1: "early"}, {"late": 0, "early": 1}
    AutoModelForSequenceClassification.from_config(settings).save_pretrained(here / "classifier")
    told = document("classifier", "--activations", PROMPT)["activations"]
    assert told["read"] == PROMPT
    long = inspect("classifier", "--activations", "the order " * 2000)
    assert "was cut to them" in long.stderr


def test_gradients_of_a_config() -> None:
    found = document("--gradients", config())
    assert found.keys() == {"model", "notes", "gradients"}
    told = found["gradients"]
    assert {"model", "method", "trained", "rows", "tokens", "targets", "loss", "norm"} < told.keys()
    assert {"layers", "outside", "idle", "courses"} < told.keys()
    assert [layer["parameters"] > 0 for layer in told["layers"]] == [True] * 3
    (course,) = told["courses"]
    assert course["ratio"] == pytest.approx(told["layers"][0]["stream_norm"] / told["layers"][2]["stream_norm"])
    assert (course["vanishing_below"], course["exploding_above"]) == (1e-3, 1e3)
    assert not Path("runs").exists(), "nothing is begun"
    assert document("--gradients", config("full"))["gradients"]["outside"]


def test_gradients_are_read_in_eighty_columns(monkeypatch: pytest.MonkeyPatch, wording: Wording) -> None:
    from loraft.cli import console

    monkeypatch.setattr(console, "PIPE_WIDTH", 80)
    monkeypatch.setenv("COLUMNS", "80")
    result = inspect("--gradients", config("full"))
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "neither vanishing nor exploding" in result.stdout
    assert "gradients outside the layers" in result.stdout
    wording(titles(result.stdout))
    assert "A of each pair, since B begins at" in inspect("--gradients", config()).stdout


@pytest.mark.slow
def test_gradients_of_a_changed_config() -> None:
    written = config()
    plain = document("--gradients", written)["gradients"]
    changed = document("--gradients", written, "training.per_device_train_batch_size=1", "lora.r=2")["gradients"]
    assert (len(plain["rows"]), len(changed["rows"])) == (4, 1)
    assert changed["layers"][0]["parameters"] < plain["layers"][0]["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradients_of_a_run_are_those_of_what_it_trained(method: str) -> None:
    written = config(method)
    steps = ("training.max_steps=3", "training.save_steps=1", "training.logging_steps=1", "training.learning_rate=0.01")
    train(written, "training.output_dir=run", *steps)
    begun, ended = document("--gradients", written)["gradients"], document("--gradients", "run")["gradients"]
    assert (begun["trained"], ended["trained"]) == (None, "run/adapter" if method == "lora" else "run/model")
    assert begun["rows"] == ended["rows"]
    first = document("--gradients", "run/checkpoints/step-000001")["gradients"]
    assert ended["loss"] < first["loss"] < begun["loss"]
    assert ended["idle"] == []
    told = inspect("--gradients", "run", "training.per_device_train_batch_size=1")
    assert told.exit_code == 0, told.stderr
    assert "1 row," in told.stdout
    assert ended["trained"] in told.stdout
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert next(line["loss"] for line in logged if "loss" in line) == pytest.approx(begun["loss"], rel=1e-5)


@pytest.mark.slow
def test_another_config_than_the_run_was_trained_by_is_refused(wording: Wording) -> None:
    train(config(), "training.output_dir=run", "training.max_steps=1")
    shutil.copytree("model", "other")
    weights = load_file("other/model.safetensors")
    save_file(
        {**weights, "model.norm.weight": weights["model.norm.weight"] + 1}, "other/model.safetensors", {"format": "pt"}
    )
    for change in ("lora.r=2", "method=full", "model.name_or_path=other", "model.name_or_path=nowhere/x"):
        result = inspect("--gradients", "run", change)
        assert result.exit_code == 2, result.stdout
        wording(result.stderr)


@pytest.mark.parametrize("course", ["vanishing", "exploding", "not finite", None])
def test_each_verdict_is_a_sentence(course: str | None, wording: Wording) -> None:
    from loraft.cli.console import print_result

    layers = [
        {"stack": "decoder", "index": index, "parameters": 0, "norm": None, "stream_norm": 1.0} for index in (0, 1)
    ]
    ratio = None if course in (None, "not finite") else 1e-4 if course == "vanishing" else 1e4
    of = {"stack": "decoder", "first": 0, "last": 1, "ratio": ratio, "course": course}
    found = {
        "model": "m", "method": "lora", "trained": None, "rows": ["a:1"],
        "tokens": 3, "targets": 2, "loss": 1.0, "norm": 1.0,
        "idle": [], "outside": [], "layers": layers,
        "courses": [{**of, "vanishing_below": 1e-3, "exploding_above": 1e3}],
    }  # fmt: skip
    with redirect_stdout(StringIO()) as said:
        print_result(*gradients_view(found))
    wording(said.getvalue())


@pytest.mark.slow_after(6)
@pytest.mark.parametrize(
    "arguments",
    [
        ["--gradients", "run.yaml", "--activations", "x"],
        ["model", "--gradients", "run.yaml"],
        ["--base-model", "model", "--gradients", "run.yaml"],
        ["model", "--activations", "x", "--lora", "r=8"],
        ["--activations", "x"],
        ["model", "--plot", "out.png"],
        ["--gradients", "nowhere.yaml"],
        ["--gradients", "nowhere"],
        ["--gradients", "model"],
        ["--gradients", "run.yaml", "training.max_stepz=3"],
        ["model", "lora.r=2"],
        ["model", "--activations", "x " * 900],
        ["model", "--activations", "x", "--plot", "out.jpg"],
        ["model", "--activations", "x", "--plot", "nowhere/out.png"],
        ["model", "--activations", "x", "--plot", "folder.png"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60].strip(),
)
def test_what_cannot_be_is_refused(here: Path, arguments: list[str], wording: Wording) -> None:
    config()
    (here / "folder.png").mkdir()
    result = inspect(*arguments)
    assert result.exit_code == 2, result.stdout
    assert result.stdout == ""
    assert not Path("out.png").exists()
    wording(result.stderr)


def test_an_empty_text_is_refused() -> None:
    save_tiny(Path("bert"), "bert")
    result = inspect("bert", "--activations", "")
    assert result.exit_code == 2
    assert "the prompt: it has no tokens" in result.stderr


def test_a_picture_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(Path("tiny"))
    monkeypatch.setattr("loraft.errors.find_spec", lambda name: None)
    result = inspect("tiny", "--activations", PROMPT, "--plot", "out.png")
    assert result.exit_code == 2
    assert "pip install 'loraft[plot]'" in result.stderr


DRAWN = {
    "activations": ["t5", "--activations", PROMPT],
    "moves": ["one"],
    "two adapters": ["--adapter", "a=one", "--adapter", "b=one"],
    "gradients": ["--gradients", "run.yaml"],
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", mostly_slow(["png", "svg"], "svg"))
@pytest.mark.parametrize("what", mostly_slow(DRAWN, "moves"))
def test_pictures_of_each_kind(here: Path, what: str, ending: str) -> None:
    config()
    adapter(here / "one")
    save_tiny(here / "t5", "t5")
    result = inspect(*DRAWN[what], "--plot", f"a.{ending}")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(f"wrote a.{ending}\n")
    content = Path(f"a.{ending}").read_bytes()
    assert content.startswith(PNG) if ending == "png" else b"</svg>" in content
    if what == "moves":
        assert document(*DRAWN[what], "--plot", f"b.{ending}")["plot"] == f"b.{ending}"
        if ending == "svg":
            assert "how far each layer moved" in content.decode(), "text stays text"
            assert Path("b.svg").read_bytes() == content, "the same each time"


@pytest.mark.slow
def test_what_is_no_number_leaves_a_gap(here: Path) -> None:
    adapter(here / "one")
    found = document("one")
    moved = found["adapters"][0]
    moved["modules"][0] |= {"norm": None, "relative": None, "finite": False}
    moved |= {"norm": None, "relative": None, "layers": moved["layers"][1:]}
    layer_plots.plot_layers(here / "gap.png", found)
    layer_plots.plot_layers(here / "one.png", {"adapters": [moved, {**moved, "layers": [], "modules": []}]})
    told = document("base", "--activations", PROMPT)["activations"]
    told["layers"][0] |= {"norm": None, "first_norm": None, "heads": []}
    layer_plots.plot_layers(here / "act.png", {"activations": told})
    assert (here / "act.png").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_a_disk_that_takes_no_picture(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter(here / "one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots.Path, "write_bytes", full)
    result = inspect("one", "--plot", "out.png")
    assert result.exit_code == 3
    assert "out.png: cannot be written: No space left on device" in result.stderr


@pytest.mark.slow
def test_a_damaged_model_is_told_as_it_is() -> None:
    written = config()
    weights = load_file("model/model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"].fill_(float("nan"))
    save_file(weights, "model/model.safetensors", {"format": "pt"})
    result = inspect("model", "--activations", PROMPT, "--plot", "out.png")
    assert result.exit_code == 0, result.stderr
    assert "decoder layer 1 is the first whose output is not finite" in result.stderr
    assert document("model", "--activations", PROMPT)["activations"]["layers"][1]["norm"] is None
    result = inspect("--gradients", written, "--plot", "out.png")
    assert result.exit_code == 0, result.stderr
    assert "not finite: NaN or infinity in the gradient" in result.stdout
