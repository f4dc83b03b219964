"""From a prompt to the token ids that the text encoder sees.

A prompt is put into a short conversation in GPT-OSS' chat format, cut before the answer would end. The tokens before
the prompt are the same for every prompt; the features behind them are dropped.
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
#: What ends the rendered conversation; it and all behind it is cut, as upstream does even where a prompt holds it.
END_OF_ANSWER = "<|return|>"
#: Tokens before the prompt, whatever the date; what they become is not shown to the transformer.
PREFIX_TOKENS = 97
#: Tokens in all, the prefix among them; upstream's default.
MAXIMUM_TOKENS = 512
#: How the chat template tells the day.
_DATE_LINE = re.compile(r"(?<=Current date: )\d{4}-\d{2}-\d{2}")


def render_prompt(tokenizer: Any, prompt: str, day: date | None = None) -> str:
    """The conversation around a prompt as text.

    Args:
        tokenizer: with GPT-OSS' chat template.
        prompt: what to draw.
        day: the date that the conversation tells; the current one by default, so that features change from day to day.
    """
    conversation = [
        {"role": "system", "content": SYSTEM_TEXT},
        {"role": "user", "content": prompt},
        {"role": "assistant", "thinking": ASSISTANT_THINKING, "content": ""},
    ]
    text: str = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False)
    text = text.partition(END_OF_ANSWER)[0]
    # The template's own line stands before the prompt.
    return text if day is None else _DATE_LINE.sub(day.isoformat(), text, count=1)


def tokenize_prompts(
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    maximum: int = MAXIMUM_TOKENS,
    day: date | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of prompts in their conversations.

    Args:
        tokenizer: with GPT-OSS' chat template.
        prompts: what to draw.
        maximum: tokens at most, the prefix among them; what is longer is cut at the end.
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
