"""Prompts that are too long for a tokenizer: pipelines cut them silently, so it is said before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converter.errors import printable
from converter.measurement.generation.pipeline_settings import PipelineSettings

#: What tokenizers give as their limit if they have none, or more.
_NO_LIMIT = 10**6
#: Characters shown of what is cut off.
_SHOWN = 200


def cut_prompts(tokenizers: Mapping[str, Any], settings: PipelineSettings) -> Iterator[str]:
    """Say what is cut off of the prompts, a sentence for each tokenizer and prompt.

    The words that a pipeline puts around a prompt, as for a language model, are not known, and not counted.

    Args:
        tokenizers: loaded ones, by their names in the pipeline.
        settings: with the prompts.
    """
    for name, tokenizer in tokenizers.items():
        limit = _limit(tokenizer, settings)
        for option, text in (("prompt", settings.prompt), ("negative prompt", settings.negative_prompt)):
            tokens = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
            most = limit - tokenizer.num_special_tokens_to_add()
            if len(tokens) > most:
                rest = printable(tokenizer.decode(tokens[most:]), _SHOWN)
                yield (
                    f"the {option} has {len(tokens)} tokens for {name}, which takes {most}; its text encoder does not "
                    f"see the rest: {rest!r}"
                )


def _limit(tokenizer: Any, settings: PipelineSettings) -> int:
    """The most tokens that a tokenizer gives, with those at the beginning and the end."""
    own, chosen = min(int(tokenizer.model_max_length), _NO_LIMIT), settings.max_sequence_length
    if chosen is None:
        return own
    # The text encoders of CLIP have places for 77 tokens; others take as many as the call allows.
    return min(own, chosen) if "CLIP" in type(tokenizer).__name__ else chosen
