"""Signs: what they say, their colours and scenes, and the prompts that describe them.

``vocabulary.toml`` lists the parts. Training and evaluation draw from it by a seed.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

_VOCABULARY: dict[str, Any] = tomllib.loads(Path(__file__).with_name("vocabulary.toml").read_text("utf-8"))
COLORS: dict[str, tuple[int, int, int]] = {name: tuple(levels) for name, levels in _VOCABULARY["colors"].items()}
SCENES: tuple[str, ...] = tuple(_VOCABULARY["scenes"])
TRAINING_WORDS: tuple[str, ...] = tuple(_VOCABULARY["training_words"])
HELD_OUT_WORDS: tuple[str, ...] = tuple(_VOCABULARY["held_out_words"])
_LONGEST: int = _VOCABULARY["longest_line"]
#: Shares of signs with two lines, of lines with a digit behind them or below, of lines that are a random string, and of
#: random strings with a digit.
_TWO_LINES, _DIGIT, _RANDOM, _MIXED = 0.6, 0.6, 0.6, 0.6


@dataclass(frozen=True)
class Sign:
    """What a picture shows."""

    lines: tuple[str, ...]
    plate: str
    ink: str
    scene: str
    template: str
    is_centred: bool = False
    """Whether the lines are in the middle of the picture, and do not begin at its left."""

    @property
    def text(self) -> str:
        """The lines, with spaces between them."""
        return " ".join(self.lines)

    @property
    def prompt(self) -> str:
        """The sentence that describes the picture."""
        return self.template.format(text=self.text, plate=self.plate, ink=self.ink, scene=self.scene)


def training_sign(rng: random.Random) -> Sign:
    """Draw a sign for the training of the transformer: a word, a random string, or either with a digit behind it."""
    line = _random_string(rng) if rng.random() < _RANDOM else rng.choice(TRAINING_WORDS)
    if rng.random() < _DIGIT and len(line) <= _LONGEST - 2:
        line = f"{line} {rng.choice(_VOCABULARY['digits'])}"
    return _sign((line,), rng)


def varied_sign(rng: random.Random) -> Sign:
    """Draw a sign for the training of the autoencoder: one or two lines in the middle."""
    lines = [_varied_line(rng)]
    if rng.random() < _TWO_LINES:
        lines.append(rng.choice(_VOCABULARY["digits"]) if rng.random() < _DIGIT else _varied_line(rng))
    return replace(_sign(tuple(lines), rng, "pairs"), is_centred=True)


def held_out_signs(count: int, seed: int = 0) -> list[Sign]:
    """Draw signs for the evaluation: every held-out word, then short ones with a digit.

    Args:
        count: how many.
        seed: of the choice.

    Returns:
        Signs with different texts, none of which training can draw.
    """
    rng = random.Random(f"held out {seed}")  # noqa: S311 - words, not secrets
    texts = dict.fromkeys(HELD_OUT_WORDS)
    short = [word for word in HELD_OUT_WORDS if len(word) <= _LONGEST - 2]
    while len(texts) < count:
        texts[f"{rng.choice(short)} {rng.choice(_VOCABULARY['digits'])}"] = None
    return [_sign((text,), rng) for text in list(texts)[:count]]


def parse_prompt(prompt: str) -> Sign:
    """The sign that a prompt describes.

    Raises:
        ValueError: the prompt is not one that the vocabulary can make.
    """
    for template, (plate, ink), scene in product(_VOCABULARY["templates"], _VOCABULARY["light_letters"], SCENES):
        before, after = template.format(text="|", plate=plate, ink=ink, scene=scene).split("|")
        if prompt.startswith(before) and prompt.endswith(after):
            return Sign((prompt.removeprefix(before).removesuffix(after),), plate, ink, scene, template)
    raise ValueError(f"no sign is described by {prompt!r}")


def _varied_line(rng: random.Random) -> str:
    return rng.choice(TRAINING_WORDS) if rng.random() >= _RANDOM else _random_string(rng)


def _random_string(rng: random.Random) -> str:
    while True:
        length = rng.randint(2, _LONGEST)
        line = "".join(rng.choice(_VOCABULARY["letters"]) for _ in range(length))
        # No more than one digit: the tokenizer makes one token of two or three digits in a row.
        if rng.random() < _MIXED:
            place = rng.randrange(length)
            line = line[:place] + rng.choice(_VOCABULARY["digits"]) + line[place + 1 :]
        if line not in HELD_OUT_WORDS:
            return line


def _sign(lines: tuple[str, ...], rng: random.Random, pairs: str = "light_letters") -> Sign:
    plate, ink = rng.choice(_VOCABULARY[pairs])
    return Sign(lines, plate, ink, rng.choice(SCENES), rng.choice(_VOCABULARY["templates"]))
