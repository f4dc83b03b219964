"""Command lines that are wrong, and options that this machine cannot satisfy."""

from __future__ import annotations

from tests.malformed.recipes import add_option_case
from tests.malformed.site import (
    IN_PROCESS,
    LENS_FILE,
    Invocation,
    Site,
    case,
)

add_option_case(
    "memory-too-little", "MemoryLimitError", "--memory 1 ", options=("--memory", "1"), hint=("Allow at least",)
)
add_option_case("device-unknown", "DeviceError", "nonsense", options=("--device", "nonsense"))
add_option_case("device-without-data", "DeviceError", "meta", options=("--device", "meta"))
add_option_case("device-without-data-for-sdnq", "DeviceError", "meta", options=("--device", "meta", *IN_PROCESS))


add_option_case("usage-unknown-option", "UsageError", "--recipee", options=("--recipee", "x"))
add_option_case("usage-too-many-arguments", "UsageError", "more", options=("more",))
add_option_case("usage-value-missing", "UsageError", "--recipe", options=("--recipe",))
add_option_case("usage-jobs-zero", "UsageError", "--jobs", options=("--jobs", "0"))
add_option_case("usage-jobs-a-word", "UsageError", "--jobs", options=("--jobs", "many"))
add_option_case("usage-memory-zero", "UsageError", "--memory", options=("--memory", "0"))
add_option_case("usage-memory-unknown-unit", "UsageError", "--memory", options=("--memory", "5 lightyears"))
add_option_case("usage-memory-negative", "UsageError", "--memory", options=("--memory", "-5GB"))
add_option_case("usage-quantize-from-unknown", "UsageError", "int8", options=("--quantize-from", "int8"))
add_option_case("usage-component-of-a-component", "UsageError", "source", options=("--component", "vae"))


@case("usage-component-of-a-file", "UsageError", LENS_FILE, "is a file")
def _usage_component_of_a_file(site: Site) -> Invocation:
    return site.convert("--component", "vae", source=site.copy_lens() / LENS_FILE)


@case("usage-no-arguments", "UsageError", "SOURCE")
def _usage_no_arguments(site: Site) -> Invocation:
    return Invocation(("convert",), site.output)


@case("usage-no-output", "UsageError", "OUT")
def _usage_no_output(site: Site) -> Invocation:
    return Invocation(("convert", str(site.copy_lens())), site.output)


@case("usage-unknown-command", "UsageError", "covnert")
def _usage_unknown_command(site: Site) -> Invocation:
    return Invocation(("covnert", str(site.copy_lens()), str(site.output)), site.output)
