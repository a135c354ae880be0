"""llama.cpp itself, as the package xllamacpp brings it: what it computes of a file, and how it splits text."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

FORCED = 40
"""The token that is made to come: of one that ends an answer, or is half a letter, nothing would be told."""


class LlamaCpp:
    """A file that llama.cpp has opened, on one thread, with keys and values in float32."""

    def __init__(self, file: Path, *, lora: Path | None = None, context: int = 512) -> None:
        xllamacpp: Any = pytest.importorskip("xllamacpp")
        asked = xllamacpp.CommonParams()
        asked.model.path = str(file)
        asked.n_ctx, asked.n_parallel, asked.n_threads_http = context, 1, 1
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
        asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        asked.warmup, asked.use_jinja, asked.swa_full, asked.verbosity = False, True, True, -1
        if lora is not None:
            asked.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self._server = xllamacpp.Server(asked)

    def log_probabilities(self, ids: Sequence[int], vocabulary: int) -> Tensor:
        """Of each position but the first, those of its token: `[len(ids) - 1, vocabulary]`."""
        rows = []
        for stop in range(1, len(ids)):
            listed = self._next(ids[:stop], vocabulary)
            row = torch.full((vocabulary,), torch.nan, dtype=torch.float64)
            row[[each["id"] for each in listed]] = torch.tensor([each["logprob"] for each in listed]).double()
            rows.append(row)
        return torch.stack(rows)

    def likeliest(self, ids: Sequence[int]) -> list[int]:
        """The likeliest token behind each beginning of `ids`."""
        return [int(self._next(ids[:stop], 1)[0]["id"]) for stop in range(1, len(ids) + 1)]

    def _next(self, ids: Sequence[int], count: int) -> list[dict[str, Any]]:
        bias = [[FORCED, 1000.0]]
        asked = {"prompt": list(ids), "n_predict": 1, "n_probs": count, "temperature": 0, "logit_bias": bias}
        told = self._server.handle_completions({**asked, "cache_prompt": True})
        found: list[dict[str, Any]] = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return found

    def answer(self, messages: Sequence[dict[str, str]], max_tokens: int, **options: Any) -> str:
        """The answer to a conversation by the file's own template; greedy where the file says so."""
        told = self._server.handle_chat_completions({"messages": messages, "max_tokens": max_tokens, **options})
        return str(told["choices"][0]["message"]["content"])

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, with what is put in front."""
        asked = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        address = f"{self._server.listening_address}/tokenize"
        request = urllib.request.Request(address, data=asked, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            found: list[int] = json.load(reply)["tokens"]
        return found
