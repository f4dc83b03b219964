"""Values of TOML files: checked as they are taken out."""

from __future__ import annotations

import pytest

from converter.errors import RecipeError
from converter.fields import Fields, parse_toml

TEXT = 'name = "mine"\nseed = 3\nclasses = ["a", "b"]\nmixed = ["a", 1]\n'


def fields() -> Fields:
    return parse_toml(TEXT, "mine.toml", RecipeError)


def test_values_are_taken_by_their_type() -> None:
    assert fields().take("name", str) == "mine"
    assert fields().take("seed", float) == 3.0
    assert fields().take("absent", int, 7) == 7
    assert fields().take_strings("classes") == ("a", "b")
    assert fields().take_strings("absent") == ()


@pytest.mark.parametrize(
    ("key", "kind", "message"),
    [
        ("absent", dict, "mine.toml: absent is missing"),
        ("name", int, "mine.toml: name must be an integer, not 'mine'"),
        ("seed", bool, "mine.toml: seed must be true or false, not 3"),
    ],
)
def test_a_wrong_value_is_refused(key: str, kind: type, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        fields().take(key, kind)
    assert caught.value.message == message


def test_a_mixed_array_is_refused() -> None:
    with pytest.raises(RecipeError, match="mixed must be an array of strings, and 1 is not a string"):
        fields().take_strings("mixed")


def test_an_unknown_key_names_those_like_it() -> None:
    with pytest.raises(RecipeError, match="mixed is not a key of a recipe"):
        fields().refuse_unknown(("name", "seed", "classes"), "a recipe")
    with pytest.raises(RecipeError) as caught:
        parse_toml('nmae = "mine"', "x", RecipeError).refuse_unknown(("name", "seed"), "a recipe")
    assert caught.value.hint == "Similar keys: name."


@pytest.mark.parametrize("text", ["= 1", 'a = "', "a" + ".b" * 100_000 + " = 1", "[" * 50_000])
def test_what_is_not_toml_is_refused_at_once(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_toml(text, "x", RecipeError)


def test_dots_in_strings_and_comments_do_not_count() -> None:
    text = f'name = "{"." * 100}"  # {"." * 100}'
    assert parse_toml(text, "x", RecipeError).take("name", str) == "." * 100


def test_tables_are_named_by_their_numbers() -> None:
    content = parse_toml("[[rules]]\nmatch = 'a'\n[[rules]]\nmatch = 3", "x", RecipeError)
    first, second = content.take_tables("rules", "rule")
    assert first.take("match", str) == "a"
    with pytest.raises(RecipeError, match="x: rule 2: match must be a string"):
        second.take("match", str)
    assert content.take_tables("absent", "rule") == ()
    with pytest.raises(RecipeError, match="x: rule 1: must be a table"):
        parse_toml("rules = [1]", "x", RecipeError).take_tables("rules", "rule")
