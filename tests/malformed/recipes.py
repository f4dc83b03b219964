"""Recipes."""

from __future__ import annotations

from tests.malformed.site import Invocation, Site, add_case, rows_of


def _add_recipe_case(name: str, error: str, hint: str, content: str, *message: str) -> None:
    def build(site: Site) -> Invocation:
        site.copy_lens()
        return site.convert("--recipe", str(site.write("work/mine.toml", content)))

    add_case(f"recipe-{name}", build, error, *message, hint=(hint,))


for _row in rows_of("recipes"):
    _add_recipe_case(*_row)
_add_recipe_case("nested-too-deep", "RecipeError", "", "name = " + "[" * 10**5, "mine.toml")
_add_recipe_case("5000-digits", "RecipeError", "", "seed = " + "9" * 5000, "mine.toml")
