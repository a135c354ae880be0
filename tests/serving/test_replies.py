"""What a client gets of tokens that come piece by piece."""

from __future__ import annotations

from loraft.serving.bodies import ChatBody, CompletionBody
from loraft.serving.jobs import ChoiceToken, Grown, Opened, ScoredToken
from loraft.serving.replies import Reply

HI, HALF, REST, END = (
    ScoredToken("Hi", b"Hi", -0.5), ScoredToken("Ã", b"\xc3", -1.0), ScoredToken("©", b"\xa9", -2.0),
    ScoredToken("!", None, -3.0),
)  # fmt: skip
FIRST = Grown(0, (ChoiceToken(HI, "Hi", (HI,)), ChoiceToken(HALF, "")), None)
LAST = Grown(0, (ChoiceToken(REST, "é"), ChoiceToken(END, "!")), "stop")


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
        "tokens": ["Hi", "Ã", "©", "!"],
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


def test_each_piece_counts_the_tokens_so_far_where_that_is_asked_for() -> None:
    """Load generators for vLLM, such as guidellm, ask for it in every stream."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = CompletionBody.model_validate({"model": "base", "prompt": "a", "stream": True, "stream_options": options})
    growing, told = Reply(body, Opened(3, 0)), []
    for grown in (FIRST, LAST):
        growing.take(grown)
        told.append(growing.piece(grown)["usage"]["completion_tokens"])
    assert told == [2, 4]
    assert "usage" not in reply().piece(FIRST)


def test_a_chat_tells_the_bytes_of_a_character_that_is_several_tokens() -> None:
    body = ChatBody(model="base", messages=[{"role": "user", "content": "a"}], logprobs=True)
    growing = Reply(body, Opened(3, 0))
    growing.take(FIRST)
    growing.take(LAST)
    told = growing.whole()["choices"][0]["logprobs"]["content"]
    assert [each["bytes"] for each in told] == [[72, 105], [0xC3], [0xA9], None]
    assert told[0]["top_logprobs"] == [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}]
