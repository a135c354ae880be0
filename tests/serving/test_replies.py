"""What a client gets of tokens that come piece by piece."""

from __future__ import annotations

from loraft.serving.bodies import CompletionBody
from loraft.serving.jobs import ChoiceToken, Grown, Opened
from loraft.serving.replies import Reply

FIRST = Grown(0, (ChoiceToken("Hi", "Hi", -0.5, (("Hi", -0.5),)), ChoiceToken("\ufffd", "", -1.0)), None)
LAST = Grown(0, (ChoiceToken("\ufffd", "é", -2.0), ChoiceToken("!", "!", -3.0)), "stop")


def reply() -> Reply:
    return Reply(CompletionBody(model="base", prompt="a", logprobs=1), Opened(3, 0))


def test_each_token_is_told_with_where_its_text_begins() -> None:
    """A character of two tokens is the text of the second."""
    whole = reply()
    whole.take(FIRST)
    whole.take(LAST)
    (choice,) = whole.whole()["choices"]
    assert choice["text"] == "Hié!"
    assert choice["logprobs"] == {
        "tokens": ["Hi", "\ufffd", "\ufffd", "!"],
        "token_logprobs": [-0.5, -1.0, -2.0, -3.0],
        "top_logprobs": [{"Hi": -0.5}, {}, {}, {}],
        "text_offset": [0, 2, 2, 3],
    }
    assert whole.usage()["total_tokens"] == 7


def test_a_stream_goes_on_counting_where_the_piece_before_ended() -> None:
    growing, offsets = reply(), []
    for grown in (FIRST, LAST):
        growing.take(grown)
        (choice,) = growing.piece(grown)["choices"]
        offsets += choice["logprobs"]["text_offset"]
    assert offsets == [0, 2, 2, 3]
    assert growing.is_whole
