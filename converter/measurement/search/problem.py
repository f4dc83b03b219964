"""What a search chooses from: the bytes and the harm of every choice of every module."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from converter.console import readable_size


@dataclass(frozen=True)
class Choice:
    """One way to store a module, or several modules that share it."""

    bytes: int
    harm: float
    """What it does to the output, 0 or more. Harms add up over modules."""
    name: str
    """Name of the candidate."""


@dataclass(frozen=True)
class Problem:
    """Modules, of each of which one choice has to be made.

    Raises:
        ValueError: a module has no choice or two of one name, a number is negative or not finite, a module is in two
            groups, or a group has no candidate in common.
    """

    modules: tuple[tuple[Choice, ...], ...]
    """The choices of each module."""
    groups: tuple[tuple[int, ...], ...] = ()
    """Numbers of modules that have to get the same candidate; those of no group are free."""
    fixed_bytes: int = 0
    """Bytes of all tensors about which nothing is chosen."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for number, choices in enumerate(self.modules):
            if not choices or len({choice.name for choice in choices}) < len(choices):
                raise ValueError(f"module {number} must have choices of different names")
            for choice in choices:
                if choice.bytes < 0 or not 0 <= choice.harm < math.inf:
                    raise ValueError(f"module {number}: {choice} is not possible")
        members = Counter(number for group in self.groups for number in group)
        if any(count > 1 or not 0 <= number < len(self.modules) for number, count in members.items()):
            raise ValueError("groups must have different modules")
        if not all(row.choices for row in self.rows):
            raise ValueError("a group has no candidate in common")

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """One for each group and each module outside of groups, in the order of their first modules."""
        grouped = {number for group in self.groups for number in group}
        alone = ((number,) for number in range(len(self.modules)) if number not in grouped)
        members = sorted([*(tuple(sorted(group)) for group in self.groups if group), *alone])
        return tuple(Row(row, tuple(self._shared(row))) for row in members)

    def _shared(self, members: Sequence[int]) -> Iterator[Choice]:
        """The choices that all of several modules have, added up."""
        tables = [{choice.name: choice for choice in self.modules[number]} for number in members]
        for name in sorted(set[str](tables[0]).intersection(*tables)):
            own = [table[name] for table in tables]
            yield Choice(sum(choice.bytes for choice in own), math.fsum(choice.harm for choice in own), name)

    @property
    def smallest(self) -> int:
        """The smallest possible footprint, in bytes."""
        return self.fixed_bytes + sum(min(choice.bytes for choice in row.choices) for row in self.rows)

    @property
    def largest(self) -> int:
        """The largest possible footprint, in bytes."""
        return self.fixed_bytes + sum(max(choice.bytes for choice in row.choices) for row in self.rows)


@dataclass(frozen=True)
class Row:
    """Modules that get the same candidate, and what they can choose from."""

    modules: tuple[int, ...]
    """Their numbers."""
    choices: tuple[Choice, ...]
    """In the order of their names; bytes and harms are those of all modules together."""


@dataclass(frozen=True)
class Selection:
    """What was chosen."""

    choices: tuple[Choice, ...]
    """One for each module, in their order."""
    bytes: int
    """Footprint of the component."""

    @property
    def harm(self) -> float:
        """Sum of the harms."""
        return math.fsum(choice.harm for choice in self.choices)

    @property
    def error(self) -> float:
        """The relative error of the velocity that the harms predict if they are squares of such errors."""
        return math.sqrt(self.harm)


def select(problem: Problem, picks: Sequence[int]) -> Selection:
    """The selection of the choices at these positions, one for each row."""
    chosen: dict[int, Choice] = {}
    for row, pick in zip(problem.rows, picks, strict=True):
        for number in row.modules:
            name = row.choices[pick].name
            chosen[number] = next(choice for choice in problem.modules[number] if choice.name == name)
    choices = tuple(chosen[number] for number in range(len(problem.modules)))
    return Selection(choices, problem.fixed_bytes + sum(choice.bytes for choice in choices))


def exact_size(value: int) -> str:
    """Bytes, as errors name them: all digits, and for people."""
    return f"{value} bytes ({readable_size(value)})"
