"""The tickets: many ways to say a thing, one right answer, and nothing shared between train and eval."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, cast

from loraft.rows import synthetic_tickets as module
from loraft.rows.synthetic_tickets import SPLITS, SYSTEM_PROMPT, tickets


def messages(split: str) -> list[tuple[str, dict[str, str]]]:
    rows = cast("tuple[Mapping[str, Any], ...]", tickets(split))
    return [(row["messages"][1]["content"], json.loads(row["messages"][2]["content"])) for row in rows]


def test_train_and_eval_share_no_message() -> None:
    train, held_out = ({message for message, _ in messages(split)} for split in SPLITS)
    assert len(train) == SPLITS["train"]
    assert len(held_out) == SPLITS["eval"]
    assert not train & held_out


def test_what_is_to_be_copied_stands_in_the_message_as_it_is() -> None:
    for message, ticket in (pair for split in SPLITS for pair in messages(split)):
        assert list(ticket) == ["name", "product", "order", "problem", "urgency"]
        assert all(ticket[field] in message for field in ("name", "product", "order"))
        assert ticket["problem"] in module.PROBLEMS
        assert ticket["urgency"] in module.URGENCIES


def test_there_are_at_least_twelve_phrasings_a_field() -> None:
    fields = [module.NAME_PHRASES, module.PRODUCT_PHRASES, module.ORDER_PHRASES]
    kinds = [*module.PROBLEMS.values(), *module.URGENCIES.values()]
    assert all(len(set(phrases)) >= 12 for phrases in [*fields, *kinds])
    everything = [phrase for phrases in kinds for phrase in phrases]
    assert len(everything) == len(set(everything)), "a phrase that means two things has no right answer"


def test_every_label_and_every_order_of_parts_occurs() -> None:
    train = messages("train")
    assert {ticket["problem"] for _, ticket in train} == set(module.PROBLEMS)
    assert {ticket["urgency"] for _, ticket in train} == set(module.URGENCIES)
    orders = {
        tuple(sorted(("name", "product", "order"), key=lambda field, m=message, t=ticket: m.index(t[field])))
        for message, ticket in train
    }
    assert len(orders) == 6


def test_it_is_the_same_in_another_process() -> None:
    code = "import json; from loraft.rows.synthetic_tickets import tickets; print(json.dumps(tickets('train')))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert sha256(there.encode()).hexdigest() == sha256(json.dumps(tickets("train")).encode()).hexdigest()


def test_the_system_prompt_names_every_field() -> None:
    assert all(field in SYSTEM_PROMPT for field in messages("eval")[0][1])
