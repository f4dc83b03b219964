"""Options that commands share, and the types of their values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from converter.console import Console
from converter.conversion.adapters.choice import AdapterChoice, parse_choice
from converter.errors import MissingInput
from converter.hub.addresses import is_address, parse_address

#: Bytes by the suffix of a size; GB are 10^9, GiB 2^30.
UNITS: dict[str, int] = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

pass_console = click.make_pass_decorator(Console)


class Size(click.ParamType[int]):
    """A number of bytes, such as ``5GB``, ``512MiB`` or ``4096``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a text; return a number as it is."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)", str(value).strip().lower())
        if match is None or match[2] not in UNITS:
            self.fail(f"{value!r} is not a size; write 5GB, 512MiB or a number of bytes", param, ctx)
        size = int(float(match[1]) * UNITS[match[2]])
        if size < 1:
            self.fail("a size is at least one byte", param, ctx)
        return size


class LocalPath(click.Path):
    """The path of something that must be on this machine; an address on the Hub is refused with what to do instead."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            MissingInput: it is an address.
        """
        if isinstance(value, str) and is_address(value):
            address = parse_address(value)
            name = address.repo_id.rpartition("/")[2]
            revision = f" --revision {address.revision}" if address.revision else ""
            hint = f"Run `hf download {address.repo_id}{revision} --local-dir {name}`, then use {name}."
            raise MissingInput(value, "this command needs a copy on this machine", hint)
        return super().convert(value, param, ctx)


class PathOrAddress(click.ParamType[Path | str]):
    """A path, or an address on the Hub such as ``hf://OWNER/NAME@REVISION``, which stays text."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Return an address as text and everything else as a path. Whether it exists is found out when it is opened."""
        if isinstance(value, str) and is_address(value):
            return value
        path: Path = PATH.convert(value, param, ctx)
        return path


def adapter_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the option that names LoRA adapters.

    Args:
        text: its help.
    """
    return click.option(
        "--lora", "adapters", metavar="FILE[=SCALE]", multiple=True, callback=_parse_adapters, help=text
    )


def _parse_adapters(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[AdapterChoice, ...]:
    """Parse LoRA adapters, each ``FILE`` or ``FILE=SCALE``.

    Raises:
        UsageError: a scale has no meaning.
    """
    return tuple(map(parse_choice, values))


def ray_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add ``--ray``, as ``ray``.

    Args:
        text: what runs on the nodes.
    """
    return click.option(
        "--ray",
        metavar="ADDRESS|local",
        callback=_check_ray,
        help=f"{text} ADDRESS is HOST:PORT of a cluster of Ray that this machine belongs to, or auto; local "
        "starts one on this machine, with all of its CPUs and GPUs. All nodes need the same versions of lensconv and "
        "its packages.",
    )


def _check_ray(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse what is not an address, or Ray that is not installed, before anything else is done.

    Raises:
        UsageError: it is not an address.
        DependencyError: Ray is not installed.
    """
    if value is not None:
        from converter.cluster.connection import check_address

        check_address(value)
    return value


SIZE = Size()
PATH = click.Path(path_type=Path)
LOCAL_PATH = LocalPath(path_type=Path)
PATH_OR_ADDRESS = PathOrAddress()
#: Types of values by the ``kind`` in a field's metadata.
_KINDS: dict[str, Any] = {"size": SIZE, "count": click.IntRange(min=1), "path": PATH}


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command takes. ``main`` reads them from the command line itself."""
    command = click.option("--quiet", is_flag=True, expose_value=False, help="Print errors only.")(command)
    return click.option(
        "--json", is_flag=True, expose_value=False, help="Print the result as one JSON object on stdout."
    )(command)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a recipe and a component."""
    command = click.option(
        "--component",
        "components",
        metavar="NAME",
        multiple=True,
        help="Component to convert, if the path is a pipeline repo. Repeatable; `all` stands for the denoisers and for "
        "text encoders above 500 MB.  [default: transformer, else unet]",
    )(command)
    command = adapter_option(
        "LoRA adapter to add to the weights first, by default with scale 1. Repeatable; added in this order."
    )(command)
    command = click.option(
        "--set",
        "settings",
        metavar="GLOB=DTYPE",
        multiple=True,
        help="Quantize matching modules to another dtype, or keep them: '*.attn.*=int8', '*.to_out.0=keep'. "
        "Repeatable; the last match wins. After NAME/, only for that component.",
    )(command)
    return click.option(
        "--recipe",
        metavar="NAME|FILE",
        help="Built-in recipe or TOML file.  [default: lens-uint4-static for Lens, else sdnq-uint4]",
    )(command)


def refuse_nonfinite(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    """Refuse NaN and infinity, which click reads as numbers: NaN is in every range, and below no limit."""
    if isinstance(value, float) and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number")
    return value


def dataclass_options(model: type[Any], *names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an option from each named field of a dataclass, which alone defines its help, type and default.

    Args:
        model: a dataclass. The metadata of its fields contain ``help`` and, as far as needed: ``option``, the option's
            name; ``kind``, ``choices`` or ``range``, for its type; ``shown``, whether to show the default.
        names: the fields to use; all when empty.
    """
    by_name = {field.name: field for field in fields(model)}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names or tuple(by_name)):
            command = _option(by_name[name])(command)
        return command

    return decorate


def own_fields_first(model: type[Any]) -> list[str]:
    """Names of the fields of a dataclass, those that it has from another one last."""
    inherited = {field.name for base in model.__mro__[1:-1] for field in fields(base)}
    return sorted((field.name for field in fields(model)), key=inherited.__contains__)


def _option(field: Field[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    metadata = field.metadata
    option = metadata.get("option", "--" + field.name.replace("_", "-"))
    if isinstance(field.default, bool):
        return click.option(
            option,
            field.name,
            is_flag=True,
            flag_value=not field.default,
            default=field.default,
            help=metadata["help"],
        )
    kind = _KINDS.get(metadata.get("kind", ""), str)
    if "choices" in metadata:
        kind = click.Choice(metadata["choices"])
    if "range" in metadata:
        least, most = metadata["range"]
        kind = click.IntRange(least, most) if isinstance(least, int) else click.FloatRange(least, most)
    shown = metadata.get("shown", field.default is not None)
    return click.option(
        option,
        field.name,
        type=kind,
        default=field.default,
        show_default=shown,
        help=metadata["help"],
        callback=refuse_nonfinite,
    )
