"""Values of TOML files: checked as they are taken out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from converter.errors import EvidenceError, FileError, RecipeError
from converter.fields import Fields, parse_toml

TEXT = 'name = "mine"\nseed = 3\nclasses = ["a", "b"]\nmixed = ["a", 1]\nodd = [1]\n[[rules]]\nmatch = 1\n[[rules]]\n'


def fields(text: str = TEXT) -> Fields:
    return parse_toml(text, "mine.toml", RecipeError)


def test_values_are_taken_by_their_type() -> None:
    taken = fields()
    assert (taken.take("name", str), taken.take("seed", float), taken.take("absent", int, 7)) == ("mine", 3.0, 7)
    assert (taken.take_strings("classes"), taken.take_strings("absent")) == (("a", "b"), ())
    assert [table.content for table in taken.take_tables("rules", "rule")] == [{"match": 1}, {}]
    assert taken.take_tables("absent", "rule") == ()
    taken.refuse_unknown(("name", "seed", "classes", "mixed", "odd", "rules"), "a recipe")
    # Dots in strings and comments do not count.
    dots = "." * 100
    for text in (f'"{dots}"  # {dots}', f"'{dots}'", f"'''\n{dots}\n'''", f'"""\n{dots}\n"""'):
        assert dots in fields(f"name = {text}").take("name", str)
    assert fields("a" + ".b" * 20 + " = 1").content.keys() == {"a"}
    assert len(fields("".join(f"a.b{number} = 1  # note\n" for number in range(30))).take("a", dict)) == 30


REFUSED: dict[str, Callable[[], Any]] = {
    "absent is missing. Add absent, a table.": lambda: fields().take("absent", dict),
    f"x is missing. {EvidenceError.default_hint}": lambda: Fields({}, "mine.toml", EvidenceError).take("x", int),
    "name must be an integer, not 'mine'": lambda: fields().take("name", int),
    "name must be a number, not 'mine'": lambda: fields().take("name", float),
    f"big must be a number, not 1{'0' * 99}": lambda: fields(f"big = 1{'0' * 400}").take("big", float),
    "on must be a number, not True": lambda: fields("on = true").take("on", float),
    "seed must be true or false, not 3": lambda: fields().take("seed", bool),
    "seed must be an array, not 3": lambda: fields().take_strings("seed"),
    "classes must be a string, not ['a', 'b']": lambda: fields().take("classes", str),
    "mixed must be an array of strings, and 1 is not a string": lambda: fields().take_strings("mixed"),
    "rule 1: must be a table, written [[odd]]": lambda: fields().take_tables("odd", "rule"),
    "rule 1: match must be a string, not 1": lambda: fields().take_tables("rules", "rule")[0].take("match", str),
    "nmae is not a key of a recipe. Similar keys: name, names.": lambda: fields("nmae = 1").refuse_unknown(
        ("seed", "names", "name"), "a recipe"
    ),
    "a key has more than 20 dots. Write texts in quotes.": lambda: fields("a" + ".b" * 21 + " = 1"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_wrong_is_said(message: str) -> None:
    with pytest.raises(FileError) as caught:
        REFUSED[message]()
    assert caught.value.with_hint == f"mine.toml: {message}"


@pytest.mark.parametrize("text", ["= 1", 'a = "', "a" + ".b" * 100_000 + " = 1", "[" * 50_000])
def test_what_is_not_toml_is_refused_at_once(text: str) -> None:
    with pytest.raises(RecipeError, match=r"is not TOML|more than 20 dots"):
        fields(text)
