"""Chat templates as models ship them, each with a tiny tokenizer that has its special tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from loraft.rows.formats import Message, Record
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from loraft.tokenization.examples import Example

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_WITH_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system_message is defined or loop.index0 == loop_messages | length - 2 and system_message is "
    "defined %}{{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token}}{%- endif %}{%- endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""It knows no generation prompt: the header stands only together with an answer."""
QWEN3 = (
    "{%- set ns = namespace(last_query_index=0) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last_query_index = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}{%- set content = message.content %}{%- set reasoning = '' %}"
    "{%- if '</think>' in content %}{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1]"
    ".lstrip('\n') %}{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last_query_index %}{{- '<|im_start|>assistant\n<think>\n' + reasoning + "
    "'\n</think>\n\n' + content }}{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}"
    "{{- '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>\n' }}{% else %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""With marks, which leave the end of the turn out, as many do."""


@dataclass(frozen=True)
class Chat:
    """A template with its tokens.

    Attributes:
        template: Its text.
        special: The special tokens that it prints or that belong to its model.
        eos: The tokenizer's end of text.
        bos: The tokenizer's beginning of text, which the tokenizer adds to every text itself.
        answer: What is trained of an answer `{}`: exact, the end of the turn included.
        stops: What ends an answer at generation.
        last_answer: The same for the last answer where it differs.
    """

    template: str
    special: tuple[str, ...]
    eos: str
    answer: str
    stops: tuple[str, ...]
    bos: str | None = None
    last_answer: str | None = None


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATS = {
    "chatml": Chat(CHATML, IM, "<|im_end|>", "{}<|im_end|>", ("<|im_end|>",)),
    "smollm2": Chat(SMOLLM2, IM, "<|im_end|>", "{}<|im_end|>", ("<|im_end|>",)),
    "llama-3": Chat(
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        "{}<|eot_id|>",
        ("<|eot_id|>", "<|end_of_text|>"),
        bos="<|begin_of_text|>",
    ),
    "zephyr": Chat(ZEPHYR, ("<s>", "</s>"), "</s>", "{}</s>", ("</s>",), bos="<s>"),
    "mistral": Chat(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", " {}</s>", ("</s>",), bos="<s>"),
    "gemma": Chat(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "{}<end_of_turn>",
        ("<end_of_turn>", "<eos>"),
        bos="<bos>",
    ),
    "phi-3": Chat(
        PHI3,
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        "<|endoftext|>",
        "{}<|end|>",
        ("<|end|>", "<|endoftext|>"),
    ),
    "vicuna": Chat(VICUNA, ("<s>", "</s>"), "</s>", " {}</s>", ("</s>",), bos="<s>"),
    "qwen3": Chat(
        QWEN3,
        IM,
        "<|im_end|>",
        "{}<|im_end|>",
        ("<|im_end|>",),
        last_answer="<think>\n\n</think>\n\n{}<|im_end|>",
    ),
    "marked": Chat(MARKED, IM, "<|im_end|>", "{}<|im_end|>", ("<|im_end|>",)),
}

ONE_TURN = (Message("user", "What is two and two?"), Message("assistant", "It is four."))
THREE_TURNS = (
    *ONE_TURN,
    Message("user", "And three?\nThink: im_end user."),
    Message("assistant", "user: five,\n  said the model"),
    Message("user", "What is two and two?"),
    Message("assistant", "four"),
)
"""Answers that say the words of headers, that stand in questions, and that are part of another answer."""


@cache
def _backend() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    words = ["two and two", "What is two and two? It is four.", "And three? Think: the user said the model is five."]
    tokenizer.train_from_iterator(words * 4, trainer)
    return str(tokenizer.to_str())


def tokenizer_of(
    special: tuple[str, ...] = ("<|endoftext|>",),
    *,
    eos: str | None = "<|endoftext|>",
    bos: str | None = None,
    template: str | None = None,
    trim_offsets: bool = False,
    appends_eos: bool = False,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with these special tokens; with `bos` it adds one to every text."""
    backend = Tokenizer.from_str(_backend())
    backend.add_special_tokens(list(special))
    parts = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if bos or appends_eos:
        around = " ".join(part for part in (bos, "$A", eos if appends_eos else None) if part)
        tokens = [(token, backend.token_to_id(token)) for token in (bos, eos) if token]
        parts.append(processors.TemplateProcessing(single=around, special_tokens=tokens))
    backend.post_processor = processors.Sequence(parts)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos, pad_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def tokenizer_for(chat: Chat) -> PreTrainedTokenizerFast:
    """The tokenizer of a chat template."""
    return tokenizer_of(chat.special, eos=chat.eos, bos=chat.bos, template=chat.template)


HEADER_ENDS_IN_SPACE = (
    "{% for message in messages %}{{ '### ' + message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant: ' }}{% endif %}"
)
"""The space at the end of a header is joined to the answer by most tokenizers."""
MISTRAL_V3 = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in loop_messages %}{%- if message['role'] == 'user' %}{%- if tools and loop.last %}"
    "{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{%- if loop.last and system_message is defined %}{{- '[INST] ' + system_message + '\n\n' + message['content'] + "
    "'[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- elif message.tool_calls is defined %}{{- '[TOOL_CALLS] [' }}{%- for call in message.tool_calls %}"
    "{{- call.function | tojson }}{%- endfor %}{{- ']' + eos_token }}"
    "{%- elif message['role'] == 'tool' %}{{- '[TOOL_RESULTS] ' + message['content'] + '[/TOOL_RESULTS]' }}"
    "{%- else %}{{- ' ' + message['content'] + eos_token}}{%- endif %}{%- endfor %}"
)
"""A system prompt is printed where the last message is a user's, and nowhere else; there is no generation prompt."""
QWEN3_WITH_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n' + (tools | tojson) + '<|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(last_query_index=0) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last_query_index = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.last_query_index and (loop.last or message.reasoning_content) %}"
    "{{- '<think>\n' + (message.reasoning_content or '') + '\n</think>\n\n' }}{%- endif %}{{- message.content }}"
    "{%- for call in message.tool_calls or [] %}{{- '<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}{%- elif message.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""An empty thought is printed in the last message alone, whatever it calls."""
R1_DISTILL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|User|>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|Assistant|>' + message['content'].split('</think>')[-1] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
"""Its generation prompt opens a thought, which no trained row has."""


def metaspace_tokenizer(scheme: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A BPE over `▁` for spaces with byte fallback, as Llama 2 and Mistral have it.

    Args:
        scheme: `always` puts a space before each stretch between control tokens, `first` before the text alone.
        template: Its chat template.
    """
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False, max_token_length=8
    )
    words = ["two and two", "What is two and two? It is four.", "### assistant: ok yes", "a b c d"]
    backend.train_from_iterator(words * 4, trainer)
    # Byte tokens are part of the vocabulary, and no control tokens.
    described = json.loads(backend.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] not in bytes_]
    backend = Tokenizer.from_str(json.dumps(described))
    begins = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.post_processor = begins
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.chat_template = template
    return tokenizer


def qwen_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that splits words as Qwen's does: line ends stay together, whatever is before them."""
    backend = Tokenizer(models.BPE())
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    words += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(["What is two and two?\n\nIt is four.\n\n\n"] * 4, trainer)
    backend.add_special_tokens(list(IM))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = template
    return tokenizer


def example_of(renderer: CausalLMRenderer, record: Record, where: str) -> Example:
    """One record as tokens and labels."""
    return renderer.examples([renderer.render(record)], [where])[0]
