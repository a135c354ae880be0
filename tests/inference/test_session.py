"""A base with its adapters, opened once: each answers as if it were alone, and what does not fit is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraft.config.sections import QuantizationSection
from loraft.errors import AdapterError, InvalidInputError, ModelError, OutOfMemoryError
from loraft.inference.engine import stream
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.sampling import SamplingParams
from loraft.inference.session import BASE, Session, open_session
from loraft.models.modules import wrapped_model
from loraft.rows.formats import Message
from tests.inference.voices import KINDS, adapter_in, base_in, logits
from tests.tiny import save_tiny

NAME_FIRST = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and an adapter of each kind, for tests that change none of them."""
    folder = tmp_path_factory.mktemp("place")
    base = base_in(folder / "base")
    for seed, (kind, lora) in enumerate(KINDS.items()):
        adapter_in(folder / kind, base, seed=seed, **lora)
    return folder


def opened(place: Path, *kinds: str) -> Session:
    return open_session(ModelRequest(None, [f"{kind}={place / kind}" for kind in kinds]))


@pytest.mark.slow
def test_each_of_several_adapters_answers_as_if_it_were_alone(place: Path) -> None:
    """Ranks, targets, DoRA, rsLoRA and modules of their own beside one another; bit for bit, in any order."""
    alone = {kind: logits(open_session(ModelRequest(str(place / kind))).model) for kind in KINDS}
    alone[BASE] = logits(open_session(ModelRequest(str(place / "base"), dtype="float32")).model)
    assert len({tuple(each.flatten().tolist()) for each in alone.values()}) == len(KINDS) + 1
    session = opened(place, *KINDS)
    for name in [*alone, *reversed(alone)]:
        with session.speaking(session.voice(name)) as model:
            assert torch.equal(logits(model), alone[name]), name
    assert torch.equal(logits(session.model), alone["plain"]), "the first one answers where nobody says which"


@pytest.mark.slow
def test_the_base_lies_in_memory_once(place: Path) -> None:
    base = load_file(place / "base/model.safetensors")
    own = sum(
        tensor.numel() for kind in KINDS for tensor in load_file(place / kind / "adapter_model.safetensors").values()
    )
    session = opened(place, *KINDS)
    held = {weight.untyped_storage().data_ptr(): weight.numel() for weight in session.model.state_dict().values()}
    buffers = {buffer.data_ptr(): buffer.numel() for buffer in session.model.buffers()}
    assert sum(held.values()) == sum(weight.numel() for weight in base.values()) + own
    assert not set(buffers) & set(held)
    assert {parameter.requires_grad for parameter in session.model.parameters()} == {False}


@pytest.mark.slow
def test_gradients_stay_off_after_every_voice(place: Path) -> None:
    session = opened(place, "plain", "whole")
    for name in ("whole", BASE, "plain"):
        with session.speaking(session.voice(name)):
            pass
        assert {parameter.requires_grad for parameter in session.model.parameters()} == {False}


def test_each_voice_has_its_template_system_prompt_and_stop_ids(place: Path, tmp_path: Path) -> None:
    adapter_in(tmp_path / "a", place / "base", system_prompt="Be brief.")
    adapter_in(tmp_path / "b", place / "base", chat_template=NAME_FIRST)
    session = open_session(ModelRequest(None, [f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"]))
    texts = {
        name: voice.tokenizer.decode(voice.renderer.prompt_ids(voice.conversation("Hi")))
        for name, voice in session.voices.items()
    }
    assert texts["a"].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert texts["b"] == "[user]Hi<|im_end|>[assistant]"
    assert texts[BASE] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert session.voice("a").stop_ids == (2, 1)
    limits = [session.voice(name).settings(GenerationRequest())["max_new_tokens"] for name in ("a", BASE)]
    assert limits == [12, 256]


def test_options_decide_before_what_was_saved(place: Path) -> None:
    voice = opened(place, "plain").voice()
    assert voice.settings(GenerationRequest()) == {
        "rules": SamplingParams(), "max_new_tokens": 12, "stop_ids": (2, 1), "stop_texts": (), "seed": None,
        "cuda_graphs": True,
    }  # fmt: skip
    asked = voice.settings(GenerationRequest(max_new_tokens=3, temperature=0.5, top_k=4, seed=9))
    assert (asked["max_new_tokens"], asked["rules"], asked["seed"]) == (3, SamplingParams(0.5, 4), 9)


def test_a_base_without_a_template_converses_in_chatml_and_says_so(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    voice = open_session(ModelRequest(str(base))).voice()
    assert voice.tokenizer.decode(voice.renderer.prompt_ids(voice.conversation("Hi"))) == "Hi"
    conversing = voice.conversing()
    assert "printed as chatml" in conversing.renderer.notes[0]
    text = conversing.tokenizer.decode(conversing.renderer.prompt_ids([Message("user", "Hi")]))
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
def test_what_was_trained_in_float32_runs_in_it(place: Path, tmp_path: Path) -> None:
    assert open_session(ModelRequest(str(place / "plain"))).loaded.placement.dtype == torch.float32
    adapter_in(tmp_path / "half", place / "base", dtype="bfloat16")
    native = open_session(ModelRequest(str(place / "base"))).loaded.placement.dtype
    assert open_session(ModelRequest(str(tmp_path / "half"))).loaded.placement.dtype == native
    assert open_session(ModelRequest(str(place / "plain"), dtype="bfloat16")).loaded.placement.dtype == torch.bfloat16


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_any_base_is_stored_in_4_bits_where_it_is_asked_for_and_that_is_told(place: Path, kind: str) -> None:
    section = QuantizationSection(type=kind)  # type: ignore[arg-type]
    base = open_session(ModelRequest(str(place / "base"), quantize=section))
    assert type(base.loaded.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    session = open_session(ModelRequest(str(place / "plain"), quantize=section))
    assert any("trained on its base unquantized, and runs on it in" in note for note in session.notes)
    assert not any("runs on it" in note for note in opened(place, "plain").notes)


@pytest.mark.slow
def test_an_adapter_of_4_bits_beside_one_of_16(place: Path, tmp_path: Path) -> None:
    """The first one says how the base is stored, and the other is told of."""
    adapter_in(tmp_path / "q", place / "base", method="qlora")
    four = open_session(ModelRequest(None, [f"q={tmp_path / 'q'}", f"plain={place / 'plain'}"]))
    assert four.quantization is not None
    assert [note for note in four.notes if "runs on it" in note] == [
        "the adapter plain was trained on its base unquantized, and runs on it in nf4 with double quantization: "
        "its answers differ"
    ]
    plain = open_session(ModelRequest(None, [f"plain={place / 'plain'}", f"q={tmp_path / 'q'}"]))
    assert plain.quantization is None
    assert any("the adapter q was trained on its base in nf4" in note for note in plain.notes)


@pytest.mark.slow
def test_c12_a_4_bit_base_answers_the_same_after_any_number_of_answers_and_switches(
    place: Path, tmp_path: Path
) -> None:
    """The kernel that repacks 4-bit weights at the first forward in eval mode would give other numbers afterwards."""
    adapter_in(tmp_path / "q", place / "base", method="qlora")
    session = open_session(ModelRequest(None, [f"q={tmp_path / 'q'}", f"plain={place / 'plain'}"]))
    packed = {name: weight.clone() for name, weight in session.model.state_dict().items()}

    def answers() -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        found = []
        for voice in session.voices.values():
            with session.speaking(voice) as model:
                whole = stream(model, voice.tokenizer, [5, 6, 7], **voice.settings(GenerationRequest(max_new_tokens=8)))
                found.append((whole.completion.token_ids, whole.completion.logprobs))
        return found

    first = answers()
    assert answers() == answers() == first
    assert all(torch.equal(weight, packed[name]) for name, weight in session.model.state_dict().items())


def copied(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place / "plain", tmp_path / "adapter")
    return tmp_path / "adapter"


def edited(name: str, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return edit


def without_a_key(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")


def with_a_nan(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[sorted(tensors)[0]][0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")


def broken_defaults(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")


def broken_defaults_of_another_tool(folder: Path) -> None:
    broken_defaults(folder)
    (folder / "loraft.json").unlink()


@pytest.mark.slow_after(4)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_key, "is missing"),
        (with_a_nan, "NaN or infinity"),
        (edited("adapter_config.json", r=8), "trained with 4, and now says 8"),
        (edited("adapter_config.json", lora_alpha=64), "trained with 8, and now says 64"),
        (edited("adapter_config.json", base_model_name_or_path="/gone/base"), "which is not there"),
        (edited("loraft.json", base={"fingerprint": "another"}), "other base weights"),
        (broken_defaults, "generation_config.json: is damaged"),
        (broken_defaults_of_another_tool, "generation_config.json: transformers cannot read it"),
        (edited("generation_config.json", max_new_tokens=[3]), "generation_config.json"),
        (edited("generation_config.json", temperature="hot", do_sample=True), "temperature: 'hot' is not taken here"),
        (edited("generation_config.json", suppress_tokens=[5, 320]), "suppress_tokens: names the token 320, and the"),
        (edited("generation_config.json", forced_bos_token_id=320), "forced_bos_token_id: names the token 320"),
        (edited("generation_config.json", eos_token_id=["a"]), "eos_token_id: 'a' is not taken here"),
    ],
)
def test_c23_a_damaged_adapter_is_refused_through_the_front_door(
    place: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = copied(place, tmp_path)
    damage(folder)
    with pytest.raises(InvalidInputError, match=message):
        open_session(ModelRequest(str(folder)))


def test_c23_a_dead_base_path_is_mended_by_base_model(place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path)
    edited("adapter_config.json", base_model_name_or_path="/gone/base")(folder)
    session = open_session(ModelRequest(str(folder), base_model=str(place / "base")))
    assert torch.equal(logits(session.model), logits(opened(place, "plain").model))
    assert any("/gone/base" in note for note in session.notes)
    save_tiny(tmp_path / "other", seed=1, tie_word_embeddings=False)
    with pytest.raises(AdapterError, match="other base weights"):
        open_session(ModelRequest(str(folder), base_model=str(tmp_path / "other")))


def test_c43_the_base_that_somebody_elses_adapter_names_is_shown(place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path)
    (folder / "loraft.json").unlink()
    assert any(f"names {place / 'base'} as its base" in note for note in open_session(ModelRequest(str(folder))).notes)


@pytest.mark.parametrize("name", ["base", "none"])
def test_c28_a_name_that_means_the_base_is_refused(place: Path, name: str) -> None:
    with pytest.raises(AdapterError, match="cannot be an adapter's name"):
        open_session(ModelRequest(None, [f"{name}={place / 'whole'}"]))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "name", ["lora_A", "lora_", "model", "0", "q_proj", "default", "-", "a" * 64, "keys", "type", "weight", "__init__"]
)
def test_names_that_mean_something_to_torch_or_peft_are_only_names(place: Path, name: str) -> None:
    session = open_session(ModelRequest(None, [f"{name}={place / 'whole'}", f"other={place / 'dora'}"]))
    with session.speaking(session.voice("other")):
        pass
    assert torch.equal(logits(session.model), logits(opened(place, "whole").model))


def test_there_is_no_such_voice(place: Path) -> None:
    with pytest.raises(AdapterError, match=r"no adapter 'b' here(.|\n)*There is plain, base"):
        opened(place, "plain").voice("b")


def test_an_encoder_is_refused_before_its_weights_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(InvalidInputError, match="is an encoder"):
        open_session(ModelRequest(str(tmp_path)))


@pytest.mark.parametrize(
    "values",
    [{"bad_words_ids": [5]}, {"bad_words_ids": "ab"}, {"suppress_tokens": "ab"}, {"length_penalty": float("nan")}],
    ids=str,
)
def test_saved_defaults_of_another_type_are_refused(place: Path, tmp_path: Path, values: dict[str, object]) -> None:
    folder = Path(shutil.copytree(place / "plain", tmp_path / "adapter"))
    (folder / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=next(iter(values))):
        open_session(ModelRequest(str(folder)))


def test_memory_that_runs_out_while_answering_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(ModelRequest(str(place / "plain")))

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(wrapped_model(session.model), "forward", full)
    voice = session.voice()
    ids = voice.renderer.prompt_ids(voice.conversation("Hi"))
    with pytest.raises(OutOfMemoryError, match="`max_new_tokens`"):
        _ = stream(session.model, voice.tokenizer, ids, **voice.settings(GenerationRequest())).completion


def test_memory_that_runs_out_while_merging_is_told(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_in(tmp_path / "a", place / "base")

    def fail(_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("loraft.inference.session.merged", fail)
    with pytest.raises(OutOfMemoryError, match="merge: memory ran out"):
        open_session(ModelRequest(str(tmp_path / "a"), merge=True))
