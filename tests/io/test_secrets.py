"""Secrets are known by their shapes and by the environment that holds them, and what names one is kept."""

from __future__ import annotations

import pytest

from loraft.io.secrets import redacted, redacted_all, secret_in

HEX = "0123456789abcdef0123456789abcdef01234567"
SECRETS = {
    "a token of Hugging Face": "hf_" + "x" * 30,
    "a key of OpenAI or Anthropic": "sk-ant-" + "x" * 30,
    "a key of Weights & Biases": f"WANDB_API_KEY={HEX}",
    "a token of GitHub": "ghp_" + "x" * 36,
    "a token of GitLab": "glpat-" + "x" * 20,
    "a key of AWS": "AKIA" + "X" * 16,
    "a key of Google": "AIza" + "x" * 35,
    "a signed token": f"eyJ{'x' * 20}.eyJ{'x' * 20}.{'x' * 20}",
    "a password in an address": "https://me:pass@host/x",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_named_and_not_repeated(kind: str) -> None:
    text = f"before {SECRETS[kind]} after"
    assert secret_in(text) == kind
    assert redacted(text).startswith(f"before [{kind}]")
    assert redacted(text).endswith(" after") or kind == "a password in an address"
    assert secret_in(redacted(text)) is None


@pytest.mark.parametrize("text", [HEX, f"revision: {HEX}", "hf_short", "half_a_word", "https://host/a@b:c", "sk-8"])
def test_what_only_looks_like_one_stays(text: str) -> None:
    assert secret_in(text) is None
    assert redacted(text) == text


def test_the_environment_knows_those_without_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "no-shape-at-all")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/.cache/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert secret_in("say no-shape-at-all") == "the value of MY_SECRET"
    assert redacted("say no-shape-at-all") == "say [the value of MY_SECRET]"
    assert redacted("/home/me/.cache/token false") == "/home/me/.cache/token false"


def test_a_value_of_json_is_searched_to_its_depth() -> None:
    token, shown = SECRETS["a token of Hugging Face"], "[a token of Hugging Face]"
    value = {token: [1, None, ("x", {"y": f"z {token}"})]}
    assert redacted_all(value) == {shown: [1, None, ["x", {"y": f"z {shown}"}]]}


def test_a_key_tells_what_its_value_is() -> None:
    told = "[a key of Weights & Biases]"
    held = {"env": {"WANDB_API_KEY": HEX}, "wandb_key": [HEX, f"{HEX} of mine"], "revision": HEX, "at": [HEX]}
    assert redacted_all(held) == held | {"env": {"WANDB_API_KEY": told}, "wandb_key": [told, f"{told} of mine"]}
