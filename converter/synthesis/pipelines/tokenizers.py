"""Tokenizers of the real classes, with vocabularies that are made here: bytes or letters, and few words.

A prompt becomes more tokens than with the real vocabularies, but special tokens and formats are the real ones.
"""

from __future__ import annotations

import string
from typing import Any

from converter.libraries import load_library
from converter.rendering import template_folder

#: Qwen's special tokens by their numbers, which are the last of the real vocabulary and the first of this one.
QWEN_TOKENS = {
    token: number
    for number, token in enumerate(
        (
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
        )
    )
}
#: The words of Qwen-Image's format. They are one token each, as the pipeline drops the first 34 tokens by number.
_QWEN_FORMAT = (
    "system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of "
    "the objects and background:\nuser\nassistant\n"
)
#: Mistral's special tokens, with their real numbers from 0 on.
_MISTRAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)
#: What FLUX.2 says before each prompt. Its words are tokens, lest a prompt be lost among hundreds of bytes.
_FLUX2_FORMAT = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
#: Number of the token that stands for a piece of an image.
IMAGE_TOKEN = _MISTRAL_TOKENS.index("[IMG]")
#: What T5 and Gemma write in place of a space.
_SPACE = "▁"
_LETTERS = (_SPACE, *string.ascii_letters, *string.digits, *string.punctuation)


def clip_tokenizer(padding: str = "<|endoftext|>") -> Any:
    """CLIP's tokenizer: bytes, each also at the end of a word, and the tokens of a text's start and end.

    Args:
        padding: the token that fills a prompt up to 77 tokens.
    """
    alphabet = _byte_alphabet()
    tokens = (*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>")
    tokenizer_class = load_library("transformers").CLIPTokenizer
    return tokenizer_class(vocab=_numbered(tokens), merges=[], pad_token=padding, model_max_length=77)


def t5_tokenizer() -> Any:
    """The tokenizer of T5 and UMT5: letters, digits and signs of ASCII, and T5's hundred tokens for gaps."""
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    gaps = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    vocabulary = [*special, *((letter, -2.0) for letter in _LETTERS), *gaps]
    return load_library("transformers").T5Tokenizer(vocab=vocabulary, model_max_length=512)


def gemma_tokenizer() -> Any:
    """Gemma's tokenizer: letters, digits and signs of ASCII, and bytes for all else; it begins a text with a token."""
    from tokenizers import processors

    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    tokens = (*special, *(f"<0x{number:02X}>" for number in range(256)), *_LETTERS)
    vocabulary = _numbered(tokens)
    tokenizer = load_library("transformers").GemmaTokenizer(vocab=vocabulary, merges=[], padding_side="right")
    start = ("<bos>", vocabulary["<bos>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[start]
    )
    return tokenizer


def qwen_tokenizer() -> Any:
    """The tokenizer of Qwen2, 2.5 and 3: bytes, and the words of Qwen-Image's format; with Qwen's chat format."""
    tokenizer_class = load_library("transformers").Qwen2Tokenizer
    merges, end = _merges_of(tokenizer_class().backend_tokenizer.pre_tokenizer, _QWEN_FORMAT), "<|im_end|>"
    tokenizer = tokenizer_class(
        vocab=_numbered((*QWEN_TOKENS, *_byte_alphabet(), *map("".join, merges))),
        merges=merges,
        eos_token=end,
        additional_special_tokens=[*QWEN_TOKENS][1:],
        model_max_length=131072,
    )
    tokenizer.chat_template = _template("qwen_chat.jinja")
    return tokenizer


def mistral_tokenizer() -> Any:
    """The tokenizer of Mistral Small 3: bytes, and the words of FLUX.2's format; with Mistral's chat format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    merges = _merges_of(splitter, _FLUX2_FORMAT)
    vocabulary = _numbered((*_MISTRAL_TOKENS, *_byte_alphabet(), *map("".join, merges)))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*_MISTRAL_TOKENS])
    unknown, start, end = _MISTRAL_TOKENS[:3]
    padding = _MISTRAL_TOKENS[IMAGE_TOKEN + 1]
    return load_library("transformers").PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=padding,
        unk_token=unknown,
        chat_template=_template("mistral_chat.jinja"),
    )


def _byte_alphabet() -> list[str]:
    """The letters that stand for the 256 bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _numbered(tokens: tuple[str, ...]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _merges_of(splitter: Any, text: str) -> list[tuple[str, str]]:
    """Pairs that byte pair encoding joins, in their order, so that each word of a text becomes one token.

    Pairs are only added at the end, so that what made an earlier word one token still does.
    """
    merges: list[tuple[str, str]] = []
    for word, _ in splitter.pre_tokenize_str(text):
        pieces = [*word]
        for pair in merges:
            pieces = _joined(pieces, pair)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _joined(pieces, merges[-1])
    return merges


def _joined(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word, with each occurrence of a pair as one piece."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _template(name: str) -> str:
    return template_folder().joinpath(name).read_text("utf-8")
