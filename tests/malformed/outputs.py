"""Paths that cannot be written to."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.malformed.pipelines import make_pipeline
from tests.malformed.site import Invocation, Site, add_case, case

Prepare = Callable[[Site], object]


def _add_output_case(name: str, output: str, prepare: Prepare | None, message: tuple[str, ...], *options: str) -> None:
    """A valid source, a path below the root that is refused, and what is made there first."""

    def build(site: Site) -> Invocation:
        site.copy_lens()
        if prepare is not None:
            prepare(site)
        return site.convert(*options, output=site.root / output)

    hint = ("--overwrite",) if message is _TAKEN else ()
    add_case(name, build, "OutputError", *message, hint=hint)


def _write(name: str) -> Prepare:
    return lambda site: site.write(name, "precious")


def _link(name: str, target: str) -> Prepare:
    return lambda site: (site.root / name).symlink_to(target)


def _link_to_a_copy(site: Site) -> None:
    site.copy_lens("work/real")
    site.output.symlink_to("real")


def _link_staging(site: Site) -> None:
    (site.work / "elsewhere").mkdir()
    (site.work / ".out.lensconv").symlink_to("elsewhere")


_OUT, _TAKEN, _NO_FOLDER = "work/out", ("out", "exists already"), ("out", "not a plain folder")
_INSIDE, _AROUND = "is inside the source", "is inside the source, or the source is inside it"
_STAGING, _THESIS, _NOTES = "work/.out.lensconv", "work/out/thesis.txt", "work/notes.txt"
# Too long for the name of the staging folder; the folder above it is made first.
_LONG = f"work/new/{'n' * 250}"
for _name, _output, _prepare, _message, *_options in (
    ("output-is-a-folder", _OUT, lambda site: site.output.mkdir(), _TAKEN),
    ("output-is-a-file", _OUT, _write(_OUT), _TAKEN),
    ("output-is-a-dangling-link", _OUT, _link(_OUT, "gone"), _TAKEN),
    ("output-is-a-file-and-overwrite", _OUT, _write(_OUT), _NO_FOLDER, "--overwrite"),
    ("output-is-a-link-and-overwrite", _OUT, _link_to_a_copy, _NO_FOLDER, "--overwrite"),
    ("output-is-no-checkpoint-and-overwrite", _OUT, _write(_THESIS), ("out", "contains no checkpoint"), "--overwrite"),
    ("output-is-the-source", "source", None, ("source", _INSIDE), "--overwrite"),
    ("output-inside-the-source", "source/deep/out", None, ("source/deep/out", _INSIDE)),
    ("output-inside-the-source-by-a-link", "work/by/out", _link("work/by", "../source"), ("by/out", _INSIDE)),
    ("output-holds-the-source", "", None, (_AROUND,), "--overwrite"),
    ("output-without-a-name", "work/..", None, ("must end with a folder name",)),
    ("output-below-a-file", f"{_NOTES}/deep/out", _write(_NOTES), ("notes.txt/deep/out", "cannot be written")),
    ("output-below-a-link-to-itself", "work/loop/out", _link("work/loop", "loop"), ("loop/out",)),
    ("output-name-too-long", _LONG, None, ("nnn", "too long")),
    ("staging-is-a-file", _OUT, _write(_STAGING), ("out",)),
    ("staging-is-a-link", _OUT, _link_staging, ("out",)),
    ("staging-holds-something-else", _OUT, _write(f"{_STAGING}/thesis.txt"), ("thesis.txt", "work folder")),
):
    _add_output_case(_name, _output, _prepare, _message, *_options)


@case("output-inside-the-pipeline", "OutputError", "source/out", _INSIDE)
def _output_inside_the_pipeline(site: Site) -> Invocation:
    return site.convert(output=make_pipeline(site) / "out")


@case("staging-of-another-conversion", "OutputError", "out", "conversion to this folder differs", hint=("--restart",))
def _staging_of_another_conversion(site: Site) -> None:
    site.copy_lens()
    release = site.work / ".out.lensconv" / "release"
    release.mkdir(parents=True)
    status = release.stat()
    journal = {"identity": {"recipe": "another"}, "release": [status.st_dev, status.st_ino], "content": ""}
    site.write(f"{_STAGING}/journal", json.dumps(journal) + "\n")
