"""Part 1: a text becomes tokens, and tokens become a text, one at a time."""

from __future__ import annotations

from loraft.tour.screens import DECODER, Document, Fact, Part, Screen, Shown, percent, spelt


def _tokens_of_hello(answer: Document) -> str:
    hello = ("Hello", ",", " how", " are")
    pieces = {piece["text"]: piece["id"] for piece in answer["trace"]["prompt"]}
    return "with SmolLM2's vocabulary: " + ", ".join(f"{pieces[text]} {spelt(text)}" for text in hello)


def _likeliest(answer: Document) -> str:
    first = answer["trace"]["steps"][0]
    named = ", ".join(f"{spelt(each['text'])} {percent(each['probability'])}" for each in first["candidates"][:3])
    return f"{named}, …; {first['how']}: {spelt(first['taken']['text'])} was taken"


def _sampled(answer: Document) -> str:
    steps = [f"{spelt(each['taken']['text'])} ({percent(each['probability'])})" for each in answer["trace"]["steps"]]
    return f"taken here, with the share that the model gave it: {', '.join(steps)}"


def _fed(answer: Document) -> str:
    fed = ", ".join(str(len(step["fed"])) for step in answer["trace"]["steps"])
    return f"tokens read at each step: {fed}"


def _ended(answer: Document) -> str:
    ending, said = answer["trace"]["ending"], answer["trace"]["ended_with"]
    if ending["by"] == "stop_id":
        return f"it ended at stop id {ending['token_id']}, {said}"
    if ending["by"] == "stop_text":
        return f"it ended at the stop text {ending['text']!r}"
    return f"it ended at the limit of {ending['limit']} tokens"


def _speeds(answer: Document) -> str:
    both = answer["no_kv_cache"]
    apart = "the same tokens" if both["same_tokens"] else "other tokens"
    with_it, without = (both[key]["decode_tokens_per_second"] for key in ("with_cache", "without_cache"))
    return f"{with_it:.1f} tokens/s with the cache, {without:.1f} without, and {apart}"


def prompt_at_once(answer: Document) -> str:
    """How long reading a prompt takes, and writing as much."""
    both, steps = answer["no_kv_cache"]["with_cache"], answer["trace"]["steps"]
    rate, first = both["decode_tokens_per_second"], len(steps[0]["fed"])
    return f"the prompt's {first} tokens together in {both['prefill_ms']:.0f} ms; then one by one, {rate:.1f} a second"


WITHOUT_CACHE = Shown(
    f'generate {DECODER} --prompt "What is the capital of France?" --dtype float32 --no-kv-cache --trace'
)

TOKENS = Part(
    "Tokens to text",
    (
        Screen(
            "A model reads numbers: its tokenizer cuts a text into tokens, each with an id. For the place after the "
            "last token the model gives every token of its vocabulary a share, and one of them is taken and read next.",
            (Shown(f'generate {DECODER} --prompt "Hello, how are" --max-new-tokens 4 --trace'),),
            (
                Fact(
                    '"Hello, how are" is three tokens: 15496, 703, 389',
                    "four with GPT-2's BPE: 15496 “Hello”, 11 “,”, 703 “␣how”, 389 “␣are”. Spaces belong to tokens, "
                    "and ids belong to one tokenizer",
                    _tokens_of_hello,
                ),
                Fact(
                    "softmax predicts the next token",
                    "it gives a distribution; greedy choice or sampling takes one token of it. Only the last position "
                    "is needed",
                    _likeliest,
                ),
                Fact(
                    "generation stops at EOS",
                    "or at another stop id (end of turn), a stop string, or the length limit",
                    _ended,
                ),
            ),
        ),
        Screen(
            "Greedy choice takes the likeliest token each time. Sampling draws one: temperature makes the shares more "
            "or less equal, top-k keeps the likeliest few, and the seed makes the draw repeatable.",
            (
                Shown(
                    f'generate {DECODER} --prompt "Hello, how are" --temperature 0.8 --top-k 5 --seed 3 --stop . '
                    "--max-new-tokens 12 --trace"
                ),
            ),
            (
                Fact(
                    "softmax predicts the next token",
                    "the model is the same as before, and so are its shares; what is taken is another's decision",
                    _sampled,
                ),
                Fact("generation stops at EOS", "a stop string ends an answer too", _ended),
            ),
        ),
        Screen(
            "Attention needs the keys and values of all earlier tokens. A KV cache keeps them, so that each step "
            "reads one token only; here everything is read again at each step, and then the same is done with the "
            "cache.",
            (WITHOUT_CACHE,),
            (
                Fact(
                    "the cache speeds up processing the sequence again",
                    "with it only the newest token is processed; the prompt is read once",
                    lambda answer: f"without it, {_fed(answer)}; {_speeds(answer)}",
                ),
                Fact(
                    "GPT works in parallel, LSTM in sequence",
                    "training and reading the prompt are parallel; decoding is one token at a time in both",
                    prompt_at_once,
                ),
                Fact("generation stops at EOS", "a chat model ends its turn, which is a stop id of its own", _ended),
            ),
        ),
    ),
)
