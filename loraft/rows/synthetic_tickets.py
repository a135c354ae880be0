"""builtin:tickets — customers' messages, and the ticket that a shop would write of each.

A small task that a base model cannot do and an adapter learns in minutes: from a message as people write them to
JSON with name, product, order number, kind of problem and urgency. A generator makes it from a seed, the same on
every machine. Names, products and order numbers are copied as the customer wrote them; kind and urgency have to be
understood. Parts come in any order, with typing errors, sloppy capitals and things that do not matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from random import Random

SPLITS: Mapping[str, int] = {"train": 800, "eval": 200}
"""The rows of each split; no message stands in both."""
SEED = 20_240_613
SYSTEM_PROMPT = "Write the customer's message as a ticket in JSON: name, product, order, problem, urgency."

FIRST = (
    "Ana", "Ben", "Carla", "Deniz", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jamal", "Katja", "Liam", "Mei", "Noor",
    "Omar", "Priya", "Quinn", "Rosa", "Sven", "Tara", "Uma", "Viktor", "Wanda", "Xenia", "Yusuf", "Zoe", "Aiko",
    "Bruno", "Chloe", "Diego", "Esther", "Fiona", "Goran", "Hana", "Ivan", "Jonas", "Kofi", "Lucia", "Marek", "Nadia",
)  # fmt: skip
LAST = (
    "Abbott", "Becker", "Castillo", "Dubois", "Eriksen", "Fischer", "Garcia", "Haddad", "Ito", "Jansen", "Kowalski",
    "Lopez", "Moreau", "Novak", "Okafor", "Patel", "Quiroga", "Rossi", "Schmidt", "Tanaka", "Ueda", "Vargas", "Weber",
    "Xu", "Yilmaz", "Zhang", "Andersson", "Brown", "Costa", "Diaz", "Evans", "Ferrari", "Gruber", "Hansen", "Ivanova",
    "Johnson", "Keller", "Lindgren", "Murphy", "Nguyen",
)  # fmt: skip
PRODUCTS = (
    "kettle", "desk lamp", "office chair", "rain jacket", "coffee grinder", "bluetooth speaker", "yoga mat", "toaster",
    "running shoes", "backpack", "alarm clock", "blender", "garden hose", "picture frame", "water bottle", "keyboard",
    "phone case", "wall shelf", "tea set", "bike helmet", "hair dryer", "camping tent", "board game", "wool blanket",
    "frying pan", "headphones", "usb hub", "mirror", "electric razor", "suitcase", "vacuum cleaner", "tool box",
)  # fmt: skip
ORDERS = ("{}", "#{}", "A-{}", "ORD{}", "NL-{}", "{}-X")
GREETINGS = (
    "hi", "hello there", "hey", "good morning", "dear team", "hi support", "to whom it may concern", "", "", "",
)  # fmt: skip
NAME_PHRASES = (
    "my name is {}", "this is {}", "{} here", "I am {}", "best, {}", "regards, {}", "yours, {}", "signed {}",
    "name: {}", "it's {} writing", "greetings from {}", "the account is under {}", "you have me down as {}",
    "thanks, {}",
)  # fmt: skip
PRODUCT_PHRASES = (
    "it is about the {}", "I bought a {} from you", "regarding my {}", "I ordered the {}", "my question is on the {}",
    "this concerns the {}", "I got the {} in your shop", "the item is the {}", "I am writing because of the {}",
    "it's the {} from your sale", "about that {} of mine", "I chose the {}", "product: {}", "subject: {}",
)  # fmt: skip
ORDER_PHRASES = (
    "order {}", "order number {}", "my order is {}", "the order no. is {}", "ref {}", "reference: {}", "see order {}",
    "it was order {}", "you find it under {}", "the number on the receipt says {}", "order id {}", "ordered as {}",
)  # fmt: skip
PROBLEMS: Mapping[str, Sequence[str]] = {
    "damaged": (
        "it arrived broken", "there is a big crack in it", "it was smashed when I opened the box", "one side is dented",
        "it came with scratches all over", "it is bent out of shape",
        "the packaging was torn and so is what was inside", "it fell apart in my hands", "a corner has chipped off",
        "it was in pieces on arrival", "the surface is damaged", "it got crushed on its way",
    ),
    "late": (
        "it still has not arrived", "I have been waiting for weeks", "the parcel is overdue",
        "delivery was due last week", "where is my parcel", "the tracking has not moved for days",
        "nothing has been delivered so far", "it should have been here long ago", "the shipment is stuck somewhere",
        "no sign of the courier yet", "it was promised for last Friday and did not come",
        "the delivery is taking forever",
    ),
    "wrong item": (
        "you sent me something else", "that is not what I ordered", "the box held a different article",
        "I received the wrong colour", "the size is not the one I picked", "somebody else's goods were in my parcel",
        "this is another model than I asked for", "you mixed up my order with another one",
        "I was sent the wrong thing", "what came is not what the picture shows", "it is the wrong version",
        "a completely different product came",
    ),
    "missing part": (
        "the screws are not in the box", "a piece is missing", "there was no manual or cable with it",
        "the lid was not included", "it came without the charger", "half of the parts are not there",
        "one of two was not in the parcel", "the accessories are missing", "the set is incomplete",
        "I count one part too few", "the battery was left out", "the mounting kit is absent",
    ),
    "refund": (
        "I want my money back", "please refund me", "I sent it back and was not paid yet", "I would like to return it",
        "when do I get my refund", "you still owe me the money", "I cancelled but was charged",
        "please pay the amount back to my card", "I changed my mind and want to give it back",
        "the return was received but I see no refund", "I was billed twice, return one", "reimburse me for this",
    ),
    "question": (
        "does it come in other colours", "how long is the warranty", "can I wash it", "is it made for outdoor use",
        "which batteries does it take", "how do I clean it", "could you tell me how to set it up",
        "do you have the manual as a file", "what material is it made of", "is there a larger one",
        "how much does it weigh", "can I use it abroad",
    ),
}  # fmt: skip
URGENCIES: Mapping[str, Sequence[str]] = {
    "high": (
        "this is urgent", "I need it by tomorrow", "please act immediately", "it cannot wait",
        "as soon as possible please", "I need an answer today", "this is an emergency", "hurry, please",
        "right away, please", "time is very short", "I must have this solved tonight", "at once, please",
    ),
    "normal": (
        "please answer this week", "a reply in a few days would be good", "please look into it",
        "I hope to hear from you", "let me know what happens next", "please get back to me",
        "I would be glad about a reply", "please sort this out in the coming days", "kindly check",
        "tell me how we go on", "please see to it", "a reply by next week is fine",
    ),
    "low": (
        "no hurry", "whenever you have time", "it is not urgent", "take your time", "there is no rush at all",
        "it can wait", "any time is fine", "just when you get to it", "this has no priority", "no need to rush",
        "I am in no hurry", "answer when it suits you",
    ),
}  # fmt: skip
ASIDES = (
    "I have been a customer for 6 years", "my neighbour recommended you", "I called twice", "the weather is awful here",
    "I paid 49 by card", "it was a gift for my sister", "your site was slow", "I moved to flat 12 in May", "", "", "",
    "",
)  # fmt: skip


@cache
def tickets(split: str) -> tuple[Mapping[str, object], ...]:
    """The rows of a split, one of `SPLITS`, in the messages format; the same at every call on every machine."""
    random = Random(SEED)
    seen: set[str] = set()
    rows: dict[str, list[Mapping[str, object]]] = {name: [] for name in SPLITS}
    for name, size in SPLITS.items():
        while len(rows[name]) < size:
            message, ticket = _ticket(random)
            if message not in seen:
                seen.add(message)
                rows[name].append(_row(message, ticket))
    return tuple(rows[split])


def _row(message: str, ticket: Mapping[str, str]) -> Mapping[str, object]:
    turns = (("system", SYSTEM_PROMPT), ("user", message), ("assistant", json.dumps(ticket)))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _ticket(random: Random) -> tuple[str, Mapping[str, str]]:
    """One message, and the ticket that is right for it."""
    problem, urgency = _pick(random, tuple(PROBLEMS)), _pick(random, tuple(URGENCIES))
    ticket = {
        "name": f"{_pick(random, FIRST)} {_pick(random, LAST)}",
        "product": _pick(random, PRODUCTS),
        "order": _pick(random, ORDERS).format(10_000 + int(random.random() * 90_000)),
        "problem": problem,
        "urgency": urgency,
    }
    parts = [
        _filled(random, _pick(random, NAME_PHRASES), ticket["name"]),
        _filled(random, _pick(random, PRODUCT_PHRASES), ticket["product"]),
        _filled(random, _pick(random, ORDER_PHRASES), ticket["order"]),
        _messy(random, _pick(random, PROBLEMS[problem])),
        _messy(random, _pick(random, URGENCIES[urgency])),
        _messy(random, _pick(random, ASIDES)),
    ]
    greeting = _messy(random, _pick(random, GREETINGS))
    said = [part for part in [greeting, *_shuffled(random, parts)] if part]
    message = "".join(part + _pick(random, (". ", ", ", "! ", " - ", "\n", "; ", ". ")) for part in said)
    return message.strip(" ,;-\n"), ticket


def _filled(random: Random, phrase: str, value: str) -> str:
    """The phrase, messy, around the value, which is not."""
    before, after = phrase.split("{}")
    return _messy(random, before) + value + _messy(random, after)


def _messy(random: Random, text: str) -> str:
    """Sloppy capitals, and now and then a typing error."""
    style = random.random()
    if style < 0.2:
        text = text.lower()
    elif style < 0.3:
        text = text.upper()
    elif style < 0.6:
        text = text[:1].upper() + text[1:]
    if random.random() < 0.25 and len(text) > 8:
        at = 2 + int(random.random() * (len(text) - 4))
        swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        text = _pick(random, (swapped, text[:at] + text[at + 1 :], text[:at] + text[at] + text[at:]))
    return text


def _pick(random: Random, choices: Sequence[str]) -> str:
    # random() alone is the same in every version of Python; choice() and shuffle() promise less.
    return choices[int(random.random() * len(choices))]


def _shuffled(random: Random, parts: Sequence[str]) -> list[str]:
    left, order = list(parts), []
    while left:
        order.append(left.pop(int(random.random() * len(left))))
    return order
