"""Turn a prompt into the token ids for the text encoder.

A prompt becomes part of a short conversation in GPT-OSS' chat format, which is cut before the end of the answer. The
tokens before the prompt are the same for every prompt; their features are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from typing import Any

import torch

#: The conversation around a prompt, as upstream writes it.
SYSTEM_TEXT = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background."
)
ASSISTANT_THINKING = "Need to generate one image according to the description."
#: The end of the rendered conversation; it is cut there, even where a prompt contains this text, as upstream does.
END_OF_ANSWER = "<|return|>"
#: Tokens before the prompt, with any date; the transformer does not get their features.
PREFIX_TOKENS = 97
#: Maximum number of tokens, including the prefix; upstream's default.
MAXIMUM_TOKENS = 512
#: The date in the chat template.
_DATE_LINE = re.compile(r"(?<=Current date: )\d{4}-\d{2}-\d{2}")


def render_prompt(tokenizer: Any, prompt: str, day: date | None = None) -> str:
    """Return the conversation around a prompt as text.

    Args:
        tokenizer: with GPT-OSS' chat template.
        prompt: what the image shows.
        day: the date in the conversation; the current one by default, so that features change from day to day.
    """
    conversation = [
        {"role": "system", "content": SYSTEM_TEXT},
        {"role": "user", "content": prompt},
        {"role": "assistant", "thinking": ASSISTANT_THINKING, "content": ""},
    ]
    text: str = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False)
    text = text.partition(END_OF_ANSWER)[0]
    # The line with the date comes before the prompt.
    return text if day is None else _DATE_LINE.sub(day.isoformat(), text, count=1)


def tokenize_prompts(
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    maximum: int = MAXIMUM_TOKENS,
    day: date | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token ids of prompts in their conversations.

    Args:
        tokenizer: with GPT-OSS' chat template.
        prompts: what the images show.
        maximum: maximum number of tokens, including the prefix; longer prompts are cut at the end.
        day: as for ``render_prompt``.

    Returns:
        Ids and mask, int64 ``[prompts, tokens]``, padded on the right to the longest.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(
        [render_prompt(tokenizer, prompt, day) for prompt in prompts],
        padding="longest",
        padding_side="right",
        truncation=True,
        max_length=maximum,
        return_tensors="pt",
    )
    return encoded.input_ids, encoded.attention_mask
