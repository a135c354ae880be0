"""Chat templates as models in use have them, with the special tokens that they need."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.tiny import CHATML, tiny_tokenizer


@dataclass(frozen=True)
class Chat:
    """A template, its tokens, and what one turn of it trains for the answer `A`."""

    template: str
    special: tuple[str, ...]
    eos: str
    trained: str
    bos: str | None = None


TEMPLATES = {
    "chatml": Chat(CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "A<|im_end|>"),
    "smollm2": Chat(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
        "'<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "A<|im_end|>",
    ),
    "llama-3": Chat(
        "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", "A<|eot_id|>",
        "<|begin_of_text|>",
    ),
    "zephyr": Chat(
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + "
        "eos_token }}{% elif message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + eos_token }}"
        "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}"
        "\n{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
        ("</s>",), "</s>", "A</s>",
    ),
    "mistral": Chat(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + "
        "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + "
        "eos_token }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
        "{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", " A</s>", "<s>",
    ),
    "gemma": Chat(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
        "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{'<start_of_turn>model\n'}}{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "A<end_of_turn>", "<bos>",
    ),
    "phi-3": Chat(
        "{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), "<|endoftext|>", "A<|end|>",
    ),
    "with marks": Chat(
        "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>assistant\n"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\n{% else %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "A<|im_end|>",
    ),
}  # fmt: skip


def chat_tokenizer(chat: Chat) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a chat's tokens and template; padding is the end of text, as in many models."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(chat.special)})
    tokenizer.eos_token = tokenizer.pad_token = chat.eos
    if chat.bos is not None:
        tokenizer.bos_token = chat.bos
    tokenizer.chat_template = chat.template
    return tokenizer
