"""What the quickstart's training changed: the same held-out messages, answered before and after it.

    .venv/bin/python scripts/quickstart_report.py RUN [--tickets 100]

Answers are greedy; they end at the end of turn or after --max-new-tokens.
"""

from __future__ import annotations

from loraft.cli.app import silence_libraries

silence_libraries()  # the libraries below warn while they are imported

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from loraft.adapters.resolve_target import resolve_target
from loraft.adapters.save_adapter import load_adapters
from loraft.config.sections import DataSource
from loraft.errors import InvalidInputError
from loraft.evaluation.metrics import is_exact_match, is_valid_json
from loraft.inference.engine import complete_batch
from loraft.inference.sampling import SamplingParams
from loraft.models.device import select_device
from loraft.models.load_model import LoadedModel, load_model
from loraft.rows.formats import Conversation, Message, to_record
from loraft.rows.raw_rows import read_rows
from loraft.tasks import TASKS, detect_format
from loraft.tokenization.causal_lm_rows import CausalLMRenderer

HELD_OUT = DataSource(path="builtin:tickets", split="eval")


@dataclass(frozen=True)
class Ticket:
    """A held-out row: what the model is asked, and the answer that counts as right."""

    asked: tuple[Message, ...]
    expected: str

    @property
    def message(self) -> str:
        """The customer's words."""
        return self.asked[-1].content


def main() -> None:
    """Answers with the base, puts the adapter in, answers again, and prints both."""
    options = parse_options()
    target = resolve_target(options.run)
    if target.adapter is None:
        raise SystemExit(f"{options.run} holds no adapter; the report compares a base with its adapter")
    section = target.model_section
    loaded = load_model(section, select_device(section), quantization=target.quantization)
    renderer = CausalLMRenderer.for_tokenizer(loaded.tokenizer, system_prompt=target.manner.system_prompt)
    tickets = held_out(options.tickets)
    before = answers(loaded.model, loaded, renderer, tickets, options.max_new_tokens)
    after = answers(
        load_adapters(loaded, {"adapter": target.adapter}).model, loaded, renderer, tickets, options.max_new_tokens
    )
    print_examples(tickets, before, after, options.examples)
    print_table([ticket.expected for ticket in tickets], before, after)


def parse_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the folder of a run on builtin:tickets")
    parser.add_argument("--tickets", type=int, default=100, help="held-out messages to answer [default: 100]")
    parser.add_argument("--examples", type=int, default=3, help="how many to show in full [default: 3]")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="the most tokens of an answer [default: 96]")
    return parser.parse_args()


def held_out(count: int) -> list[Ticket]:
    """The first `count` tickets of the eval split."""
    read = read_rows(HELD_OUT)
    row_format = detect_format(read.columns, TASKS["causal_lm"])
    tickets: list[Ticket] = []
    for row in read.rows[:count]:
        record = to_record(row, row_format, {})
        if not isinstance(record, Conversation):
            raise SystemExit(f"{row.where} is not a conversation")
        tickets.append(Ticket(record.messages[:-1], record.messages[-1].content))
    return tickets


def answers(
    model: nn.Module, loaded: LoadedModel, renderer: CausalLMRenderer, tickets: Sequence[Ticket], max_new_tokens: int
) -> list[str]:
    """The greedy answer to each ticket."""
    completions = complete_batch(
        model,
        loaded.tokenizer,
        [renderer.prompt_ids(ticket.asked) for ticket in tickets],
        rules=SamplingParams(),
        max_new_tokens=max_new_tokens,
        stop_ids=renderer.stop_ids,
        batch_size=25,
    )
    return [completion.completion for completion in completions]


def print_examples(tickets: Sequence[Ticket], before: Sequence[str], after: Sequence[str], count: int) -> None:
    """A few tickets in full."""
    for ticket, first, second in list(zip(tickets, before, after, strict=True))[:count]:
        for label, text in (
            ("message", ticket.message),
            ("before", first),
            ("after", second),
            ("right", ticket.expected),
        ):
            print(
                textwrap.fill(" ".join(text.split()), 110, initial_indent=f"{label:>8}  ", subsequent_indent=" " * 10)
            )
        print()


def print_table(expected: Sequence[str], before: Sequence[str], after: Sequence[str]) -> None:
    """The two rates, before and after."""
    print(f"{len(expected)} held-out messages{'before':>12}{'after':>10}")
    both = (before, after)
    for label, hits in (
        ("exact match", [[is_exact_match(*each) for each in zip(given, expected, strict=True)] for given in both]),
        ("valid JSON", [[is_valid_json(each) for each in given] for given in both]),
    ):
        rates = [sum(each) / len(each) for each in hits]
        print(f"{label:<21}{rates[0]:>12.0%}{rates[1]:>10.0%}")


if __name__ == "__main__":
    try:
        main()
    except InvalidInputError as refused:
        raise SystemExit(str(refused)) from None
