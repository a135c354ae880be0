"""Unknown keys are answered with what was meant."""

from __future__ import annotations

import pytest

from loraft.config.suggestions import advice_for_key


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        (("lora", "alhpa"), "Did you mean lora.alpha?"),
        (("trainning",), "Did you mean training?"),
        (("model", "name"), "Did you mean model.name_or_path?"),
        (("data", "train", 1, "wieght"), "Did you mean data.train[1].weight?"),
        (("learning_rate",), "It belongs to another level: write training.learning_rate."),
        (("training", "seed"), "It belongs to another level: write seed."),
        (("training", "max_length"), "It belongs to another level: write data.max_length."),
        (("max_step",), "Did you mean training.max_steps?"),
        (("lora.r",), "Keys are nested: write lora: and, indented beneath it, r."),
        (("data", "train", 0, "type"), "Write format."),
        (("generation", "zzz"), "Known keys in generation: max_new_tokens, temperature."),
    ],
)
def test_what_to_write_instead(path: tuple[str | int, ...], advice: str) -> None:
    assert advice_for_key(path, 1) == advice


def test_at_the_top_every_section_is_listed() -> None:
    assert advice_for_key(("zzz",), None) == (
        "Known keys at the top: task, method, seed, model, quantization, lora, data, training, generation."
    )
