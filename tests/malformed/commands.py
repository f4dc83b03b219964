"""Command lines that are wrong, and options that this machine cannot satisfy."""

from __future__ import annotations

from collections.abc import Callable

from tests.malformed.site import LENS_FILE, Invocation, Site, add_case, rows_of


def _add_option_case(name: str, error: str, hint: str, options: list[str], *message: str) -> None:
    def build(site: Site) -> Invocation:
        site.copy_lens()
        return site.convert(*options)

    add_case(name, build, error, *message, hint=(hint,))


for _row in rows_of("options"):
    _add_option_case(*_row)
_add_option_case("recipe-name-too-long", "InputError", "", ["--recipe", "n" * 300], "nnn")


def _add_usage_case(name: str, arguments: Callable[[Site], tuple[object, ...]], *message: str) -> None:
    def build(site: Site) -> Invocation:
        return Invocation(tuple(map(str, arguments(site))), site.output)

    add_case(f"usage-{name}", build, "UsageError", *message)


add_case(
    "usage-component-of-a-file",
    lambda site: site.convert("--component", "vae", source=site.copy_lens() / LENS_FILE),
    "UsageError",
    LENS_FILE,
    "is a file",
)
_add_usage_case("no-arguments", lambda _: ("convert",), "SOURCE")
_add_usage_case("no-output", lambda site: ("convert", site.copy_lens()), "OUT")
_add_usage_case("unknown-command", lambda site: ("covnert", site.copy_lens(), site.output), "covnert")
