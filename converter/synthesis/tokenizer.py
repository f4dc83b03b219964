"""A tokenizer for tiny text encoders, built in process: bytes, and the words of GPT-OSS' chat format.

The text before a prompt takes 97 tokens and the text after it 22, as with the real tokenizer, on every date. The
prompt itself is encoded in bytes, except for words that are also in the format.
"""

from __future__ import annotations

from typing import Any

from converter.models.lens.prompts import ASSISTANT_THINKING, SYSTEM_TEXT
from converter.rendering import template_folder

#: The special tokens of the format, in the order of the real ids; the first two are a text's start and end (padding).
SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
)
CHAT_TEMPLATE = "gpt_oss_chat.jinja"
#: Words with the space or sign before them, up to three digits, runs of signs, line ends, spaces.
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
#: The words of the format, those of the template and those of the conversation.
_FORMAT = (
    "system",
    "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: ",
    "\n\nReasoning: medium\n\n",
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.",
    "developer",
    f"# Instructions\n\n{SYSTEM_TEXT}\n\n",
    "user",
    "assistant",
    "analysis",
    ASSISTANT_THINKING,
    "final",
)
#: A word that stays in bytes: as one token, it would leave 94 tokens before the prompt instead of 97.
_IN_BYTES = "Ġare"


def build_tokenizer() -> Any:
    """The tokenizer, as transformers' ``PreTrainedTokenizerFast`` with its chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # In the order in which they are found, each once.
    words = dict.fromkeys(word for text in _FORMAT for word, _ in splitter.pre_tokenize_str(text))
    words |= dict.fromkeys(f"{number:0{digits}}" for digits in (2, 3) for number in range(10**digits))
    del words[_IN_BYTES]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*alphabet, *words]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL_TOKENS])
    template = template_folder().joinpath(CHAT_TEMPLATE).read_text("utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[1],
        eos_token=SPECIAL_TOKENS[2],
        chat_template=template,
    )
