"""Command lines that are wrong, and options that this machine cannot satisfy."""

from __future__ import annotations

from collections.abc import Callable

from tests.malformed.recipes import add_option_case
from tests.malformed.site import IN_PROCESS, LENS_FILE, Invocation, Site, add_case

add_option_case(
    "memory-too-little", "MemoryLimitError", "--memory 1 ", options=("--memory", "1"), hint=("Allow at least",)
)
for _name, _error, _message, *_options in (
    ("device-unknown", "DeviceError", "nonsense", "--device", "nonsense"),
    ("device-without-data", "DeviceError", "meta", "--device", "meta"),
    ("device-without-data-for-sdnq", "DeviceError", "meta", "--device", "meta", *IN_PROCESS),
    ("usage-unknown-option", "UsageError", "--recipee", "--recipee", "x"),
    ("usage-too-many-arguments", "UsageError", "more", "more"),
    ("usage-value-missing", "UsageError", "--recipe", "--recipe"),
    *((f"usage-jobs-{value}", "UsageError", "--jobs", "--jobs", value) for value in ("0", "many")),
    *(
        (f"usage-memory-{value}", "UsageError", "--memory", "--memory", value)
        for value in ("0", "5 lightyears", "-5GB")
    ),
    ("usage-quantize-from-unknown", "UsageError", "int8", "--quantize-from", "int8"),
    ("usage-component-of-a-component", "UsageError", "source", "--component", "vae"),
):
    add_option_case(_name, _error, _message, options=tuple(_options))


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
