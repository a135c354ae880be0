"""loraft against transformers' generate: tokens a second of the same greedy answers, one at a time and in a batch.

    .venv/bin/python scripts/benchmark_generate.py
    .venv/bin/python scripts/benchmark_generate.py --adapter RUN/adapter

SmolLM2-135M-Instruct answers the same prompts in the dtype that loraft takes on this machine, in one process, the two
in turns. Nothing ends an answer before its last token, so both do the same number of steps. The rate counts new tokens
over the whole time of an answer, reading the prompt included. Each figure is the median of the rounds; a first round
warms up and is thrown away. Whether both gave the same tokens is told too: in 16 bits they may differ where padding
or another order of sums rounds a close choice the other way. Beside them stands what a bare loop of the products of a
step would give, as torch computes them. With `--processor-time` the time of the processor is counted, not the clock's:
for a machine that others work on too, with one thread.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from benchmark_record import Figure, add_option, record

from loraft.inference.engine import complete_batch
from loraft.inference.requests import ModelRequest
from loraft.inference.sampling import GREEDY
from loraft.inference.session import open_session

MODEL = "builtin:smollm2-135m-instruct"
PROMPTS = (
    "What is the capital of France?",
    "Explain how a bicycle stays upright, in a few sentences for a child of ten.",
    "Write a short letter to a neighbour whose dog barks at night.",
    "List the planets of the solar system with one fact about each of them.",
    "Why is the sky blue?",
    "Give me a recipe for a simple tomato soup that serves four people, with the amounts.",
    "Tell a story about a lighthouse keeper who finds a bottle with a message in it on the shore.",
    "What should I think of before I adopt a cat?",
)

Answer = Callable[[Sequence[Sequence[int]]], list[list[int]]]


@dataclass(frozen=True)
class Compared:
    """One batch size.

    Attributes:
        batch_size: How many prompts at a time.
        loraft: Tokens a second, the median of the rounds.
        transformers: Likewise.
        ratio: The median of the ratios of each round.
        same_answers: How many of the answers were the same in both, token for token.
        answers: How many answers there were.
    """

    batch_size: int
    loraft: float
    transformers: float
    ratio: float
    same_answers: int
    answers: int


def main() -> None:
    """Measures both and prints a table."""
    options = parse_options()
    session = open_session(ModelRequest(MODEL, [options.adapter] if options.adapter else [], dtype=options.dtype))
    voice = session.voice()
    prompts = [voice.renderer.prompt_ids(voice.conversation(prompt)) for prompt in PROMPTS]
    ours, theirs = answerers(session.model, voice.tokenizer, options.new_tokens)
    batches = {1: [[prompts[index]] for index in (0, 1)], 8: [prompts]}
    results = [compare(size, batch, ours, theirs, options) for size, batch in batches.items()]
    bare = {size: floor(session.loaded.model, size, options) for size in batches}
    report = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": session.loaded.placement.device_name,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "dtype": session.loaded.placement.dtype_name,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "bare_products": bare,
    }
    print(table(report, results))
    record(options.json, figures(report, results, options))


def answerers(model: Any, tokenizer: Any, new_tokens: int) -> tuple[Answer, Answer]:
    """Both ways to the same answers."""

    def ours(rows: Sequence[Sequence[int]]) -> list[list[int]]:
        done = complete_batch(model, tokenizer, rows, rules=GREEDY, max_new_tokens=new_tokens, stop_ids=())
        return [list(answer.token_ids) for answer in done]

    def theirs(rows: Sequence[Sequence[int]]) -> list[list[int]]:
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": new_tokens}
        dtype = next(module for module in model.modules() if hasattr(module, "config")).dtype
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=adapted(model) and dtype == torch.bfloat16):
            whole = model.generate(input_ids=ids, attention_mask=mask, **settings)
        answers: list[list[int]] = whole[:, longest:].tolist()
        return answers

    return ours, theirs


def floor(model: Any, rows: int, options: argparse.Namespace) -> float:
    """Tokens a second of nothing but the products of a step, as torch computes them: the best of the rounds."""
    clock = time.process_time if options.processor_time else time.perf_counter
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {width: torch.ones(rows, width, dtype=weights[0].dtype) for width in {w.shape[1] for w in weights}}
    seconds = []
    with torch.inference_mode():
        for _ in range(3 * options.rounds):
            started = clock()
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            seconds.append(clock() - started)
    return rows / min(seconds)


def adapted(model: Any) -> bool:
    """Whether float32 adapters are in it, which transformers needs autocast for."""
    return len({parameter.dtype for parameter in model.parameters()}) > 1


def compare(
    size: int, batches: Sequence[Sequence[Sequence[int]]], ours: Answer, theirs: Answer, options: argparse.Namespace
) -> Compared:
    """Rates of both, in turns; which one goes first changes with each round."""
    clock = time.process_time if options.processor_time else time.perf_counter
    rates: dict[Answer, list[float]] = {ours: [], theirs: []}
    answers: dict[Answer, list[list[int]]] = {}
    for round_ in range(options.rounds + 1):
        for answer in (ours, theirs) if round_ % 2 else (theirs, ours):
            started = clock()
            answers[answer] = [tokens for batch in batches for tokens in answer(batch)]
            seconds = clock() - started
            if round_:
                rates[answer].append(sum(map(len, answers[answer])) / seconds)
    return Compared(
        batch_size=size,
        loraft=statistics.median(rates[ours]),
        transformers=statistics.median(rates[theirs]),
        ratio=statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True)),
        same_answers=sum(a == b for a, b in zip(answers[ours], answers[theirs], strict=True)),
        answers=len(answers[ours]),
    )


def figures(report: dict[str, Any], results: Sequence[Compared], options: argparse.Namespace) -> list[Figure]:
    """What a run of this script adds to a file of figures."""
    unit = "tokens/processor s" if options.processor_time else "tokens/s"
    kind = report["dtype"] + (" with an adapter" if options.adapter else "")
    found = []
    for each in results:
        name = f"answers in {kind}, {each.batch_size} at a time"
        found.append(Figure(name, unit, each.loraft, "transformers' generate", each.transformers, each.ratio))
        bare = report["bare_products"][each.batch_size]
        found.append(Figure(f"{name}, beside bare products", unit, each.loraft, "a loop of bare products", bare))
    return found


def table(report: dict[str, Any], results: Sequence[Compared]) -> str:
    """The report for a person."""
    head = f"{report['device']}, {report['machine']}, {report['dtype']}, torch {report['torch']}, "
    lines = [
        head + f"transformers {report['transformers']}, {report['new_tokens']} new tokens, {report['rounds']} rounds"
    ]
    lines.append("batch   loraft tokens/s   transformers tokens/s   ratio   same answers   torch's products alone")
    lines += [
        f"{result.batch_size:5d}   {result.loraft:15.1f}   {result.transformers:21.1f}   {result.ratio:4.2f}×   "
        f"{result.same_answers} of {result.answers:<9d}   {report['bare_products'][result.batch_size]:22.1f}"
        for result in results
    ]
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each answers (default: 7)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of each answer (default: 64)")
    parser.add_argument("--adapter", help="an adapter of that model, to answer with it")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: as loraft takes it on this machine")
    parser.add_argument("--processor-time", action="store_true", help="count the processor's time, not the clock's")
    add_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
