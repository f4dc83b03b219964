"""How strongly PEFT adds each module's product: from ranks, alphas and its config, without importing it.

``LoraConfig`` gives a rank and an alpha for all modules, and others by pattern; ``scaling`` is alpha over rank, or over
the rank's square root.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.errors import printable

#: ``LoraConfig``'s defaults of what it is asked for here.
_DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}}
_DEFAULTS |= {"use_rslora": False, "lora_bias": False}
#: Keys that do not change what loading and merging compute: the state dict decides which modules are adapted.
_WITHOUT_EFFECT = frozenset(
    {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
    | {"inference_mode", "target_modules", "exclude_modules", "lora_dropout", "bias", "fan_in_fan_out"}
    | {"layers_to_transform", "layers_pattern", "megatron_core", "loftq_config", "eva_config", "runtime_config"}
    | {"qalora_group_size", "ensure_weight_tying"}
)
#: Ways to start training that leave the weights of the model as they are, other than true and false.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
#: Patterns are regular expressions. Groups and repeats could be made to match for years, and nobody needs them.
_SAFE_PATTERN = re.compile(r"\^?(?:[\w.\-]|\\[.d]|\.\*){1,500}\$?", re.ASCII)
_MOST_WILDCARDS = 3
#: More patterns than a model has modules; each is compared with each module.
_MOST_PATTERNS = 5000

_Patterns = tuple[tuple[re.Pattern[str], Any], ...]


@dataclass(frozen=True)
class Scaling:
    """What PEFT's config of one component says. ``parse`` makes it."""

    rank: int
    alpha: Any
    """A number, or a tensor with one, in whose dtype PEFT then computes."""
    rank_patterns: _Patterns
    alpha_patterns: _Patterns
    uses_root: bool
    has_bias: bool

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Scaling:
        """Check a config, which may be from a file.

        Raises:
            ValueError: it asks for what cannot be merged, or a value is of another kind.
        """
        for key, value in config.items():
            known = key in _DEFAULTS or key in _WITHOUT_EFFECT
            if key == "init_lora_weights":
                known = isinstance(value, bool) or value is None or value in _PLAIN_STARTS
            if not known and value:
                raise ValueError(
                    f"its config has {printable(key)} = {printable(str(value), 40)}, which is not supported"
                )
        # As in diffusers, a key that is there counts, and None is not a default.
        found = _DEFAULTS | {key: config[key] for key in _DEFAULTS if key in config}
        ranks, alphas = found["rank_pattern"] or {}, found["alpha_pattern"] or {}
        for patterns in (ranks, alphas):
            if not isinstance(patterns, Mapping) or len(patterns) > _MOST_PATTERNS or not all(map(_is_safe, patterns)):
                raise ValueError("its config has a pattern that is not supported, or too many")
        if not all(_is_count(rank) for rank in (found["r"], *ranks.values())):
            raise ValueError("its config has a rank that is not a positive integer")
        if not all(_is_alpha(alpha) for alpha in (found["lora_alpha"], *alphas.values())):
            raise ValueError("its config has an alpha that is zero or not a finite number")
        return cls(
            rank=found["r"],
            alpha=found["lora_alpha"],
            rank_patterns=_compile(ranks),
            alpha_patterns=_compile(alphas),
            uses_root=bool(found["use_rslora"]),
            has_bias=bool(found["lora_bias"]),
        )

    def rank_of(self, module: str) -> int:
        """The rank that the config gives a module."""
        return int(_matching(self.rank_patterns, module, self.rank))

    def factor(self, module: str, scale: float) -> float:
        """What the product of a module's factors is multiplied by, before it is rounded to float32.

        Args:
            module: its path.
            scale: ``lora_scale`` of ``fuse_lora``.
        """
        rank = self.rank_of(module)
        alpha = _matching(self.alpha_patterns, module, self.alpha)
        factor = alpha / (math.sqrt(rank) if self.uses_root else rank)
        # PEFT multiplies only then; for a tensor, each step is rounded to its dtype.
        return float(factor if scale == 1 else factor * scale)


def _compile(patterns: Mapping[str, Any]) -> _Patterns:
    """Patterns as ``get_pattern_key`` of PEFT uses them: each must match the end of a path, from a dot on."""
    return tuple((re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in patterns.items())


def _matching(patterns: _Patterns, module: str, default: Any) -> Any:
    """The value of the first pattern that matches a path."""
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def _is_safe(pattern: object) -> bool:
    return (
        isinstance(pattern, str)
        and _SAFE_PATTERN.fullmatch(pattern) is not None
        and pattern.count("*") <= _MOST_WILDCARDS
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_alpha(value: Any) -> bool:
    # Kohya's alphas are tensors in one format of FLUX.
    if hasattr(value, "numel"):
        return bool(value.numel() == 1 and math.isfinite(float(value)) and value)
    return type(value) in (int, float) and math.isfinite(value) and value != 0
