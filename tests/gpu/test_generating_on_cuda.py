"""Answers on a GPU: a step launched as one graph gives what it gives launch by launch, token for token.

No record is given up: that is a warning, and warnings are errors here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loraft import api
from loraft.api.answers import OpenModel
from loraft.inference import engine
from loraft.inference.decoder_state import DecoderState, ordinary_attention
from loraft.inference.engine import complete_batch
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.sampling import GREEDY, SamplingParams
from loraft.inference.session import Session, open_session
from tests.inference.test_fixed_decoding import GENERATING, PROMPTS
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.wide import wide_config, wide_sizes

pytestmark = pytest.mark.gpu

TOKENS = 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", GENERATING)
def test_a_graph_gives_the_logits_of_its_launches(model_type: str, dtype: torch.dtype) -> None:
    """Through windows, with padded rows, one of which leaves; the same tokens go in, whatever comes out."""
    model = tiny_model(model_type, **wide_sizes(model_type)).to("cuda", dtype)
    ids = torch.randint(3, 300, (TOKENS, 3, 1), generator=torch.Generator().manual_seed(0)).cuda()
    seen = []
    with ordinary_attention(model):
        for room in (None, 60):
            context = DecoderState(model, room=room)
            logits = [context.read(*context.begin(PROMPTS))]
            for step, each in enumerate(ids):
                if step == TOKENS // 2:
                    context.keep([2, 0])
                logits.append(context.read(each[: 3 if step < TOKENS // 2 else 2]))
            seen.append(logits)
    assert context._fixed is not None
    assert context._fixed._replay is not None
    share = 1e-4 if dtype == torch.float32 else 5e-2  # attention to the whole room is another kernel
    for grown, fixed in zip(*seen, strict=True):
        assert (grown - fixed).abs().max() <= share * grown.abs().max()


@pytest.mark.parametrize("rules", [GREEDY, SamplingParams(temperature=0.8, top_p=0.9)])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "t5"])
def test_answers_are_the_same_token_for_token(model_type: str, rules: SamplingParams) -> None:
    torch.manual_seed(0)
    conv = model_type == "gpt2"
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=conv)
    model = get_peft_model(tiny_model(model_type, **wide_sizes(model_type)), lora).cuda().eval()
    settings: dict[str, Any] = {"rules": rules, "max_new_tokens": TOKENS, "stop_ids": (5, 77), "seed": 1}
    recorded, launched = (
        complete_batch(model, tiny_tokenizer(), PROMPTS, cuda_graphs=graphs, **settings) for graphs in (True, False)
    )
    assert [each.token_ids for each in recorded] == [each.token_ids for each in launched]


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_trained_run_answers_by_a_graph(tmp_path: Path, method: str) -> None:
    run = api.train(wide_config(tmp_path, method=method, model__dtype="bfloat16"))
    opened = OpenModel(session_of(run.run_folder, cuda_graphs=True))
    asked = GenerationRequest(max_new_tokens=TOKENS, temperature=0)
    context = DecoderState(opened._session.model, room=200)
    assert context._record is not None
    assert all(len(each.token_ids) <= TOKENS for each in opened.complete(["the order", "the text is"], options=asked))
    plain = OpenModel(session_of(run.run_folder, cuda_graphs=False))
    assert len(plain.complete(["the order"], options=asked)) == 1


def session_of(run: Path, *, cuda_graphs: bool) -> Session:
    return open_session(ModelRequest(str(run), cuda_graphs=cuda_graphs))


def test_the_record_is_one_launch_for_which_the_host_does_not_wait() -> None:
    model = tiny_model("llama", **wide_sizes("llama")).to("cuda", torch.bfloat16)
    with ordinary_attention(model):
        answers = engine.open_answers(
            model, tiny_tokenizer(), PROMPTS, {"rules": GREEDY, "max_new_tokens": TOKENS, "stop_ids": ()}
        )
        context = DecoderState(model, room=60)
        ids, mask = context.begin([answer.prompt_ids for answer in answers])
        context.read(ids, mask)
        token = torch.full((3, 1), 7, device="cuda")
        for _ in range(4):
            context.read(token)
        torch.cuda.set_sync_debug_mode("error")
        try:
            context.read(token)
        finally:
            torch.cuda.set_sync_debug_mode("default")
