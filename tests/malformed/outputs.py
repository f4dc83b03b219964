"""Paths that cannot be written to."""

from __future__ import annotations

import json

from tests.malformed.pipelines import make_pipeline
from tests.malformed.site import (
    Invocation,
    Site,
    case,
)


@case("output-is-a-folder", "OutputError", "out", "exists already", hint=("--overwrite",))
def _output_is_a_folder(site: Site) -> None:
    site.copy_lens()
    site.output.mkdir()


@case("output-is-a-file", "OutputError", "out", "exists already")
def _output_is_a_file(site: Site) -> None:
    site.copy_lens()
    site.output.write_text("precious")


@case("output-is-a-dangling-link", "OutputError", "out", "exists already")
def _output_is_a_dangling_link(site: Site) -> None:
    site.copy_lens()
    site.output.symlink_to("gone")


@case("output-is-a-file-and-overwrite", "OutputError", "out", "not a plain folder")
def _output_is_a_file_and_overwrite(site: Site) -> Invocation:
    site.copy_lens()
    site.output.write_text("precious")
    return site.convert("--overwrite")


@case("output-is-a-link-and-overwrite", "OutputError", "out", "not a plain folder")
def _output_is_a_link_and_overwrite(site: Site) -> Invocation:
    site.copy_lens()
    site.copy_lens("work/real")
    site.output.symlink_to("real")
    return site.convert("--overwrite")


@case("output-is-no-checkpoint-and-overwrite", "OutputError", "out", "contains no checkpoint")
def _output_is_no_checkpoint_and_overwrite(site: Site) -> Invocation:
    site.copy_lens()
    site.write("work/out/thesis.txt", "precious")
    return site.convert("--overwrite")


@case("output-is-the-source", "OutputError", "source", "is inside the source")
def _output_is_the_source(site: Site) -> Invocation:
    return site.convert("--overwrite", output=site.copy_lens())


@case("output-inside-the-source", "OutputError", "source/deep/out", "is inside the source")
def _output_inside_the_source(site: Site) -> Invocation:
    return site.convert(output=site.copy_lens() / "deep" / "out")


@case("output-inside-the-source-by-a-link", "OutputError", "shortcut/out", "is inside the source")
def _output_inside_the_source_by_a_link(site: Site) -> Invocation:
    site.copy_lens()
    (site.work / "shortcut").symlink_to(site.source)
    return site.convert(output=site.work / "shortcut" / "out")


@case("output-inside-the-pipeline", "OutputError", "source/out", "is inside the source")
def _output_inside_the_pipeline(site: Site) -> Invocation:
    return site.convert(output=make_pipeline(site) / "out")


@case("output-holds-the-source", "OutputError", "is inside the source, or the source is inside it")
def _output_holds_the_source(site: Site) -> Invocation:
    site.copy_lens()
    return site.convert("--overwrite", output=site.root)


@case("output-without-a-name", "OutputError", "must end in a name")
def _output_without_a_name(site: Site) -> Invocation:
    site.copy_lens()
    return site.convert(output=site.work / "..")


@case("output-below-a-file", "OutputError", "notes.txt/deep/out", "cannot be written")
def _output_below_a_file(site: Site) -> Invocation:
    site.copy_lens()
    return site.convert(output=site.write("work/notes.txt", "precious") / "deep" / "out")


@case("output-below-a-link-to-itself", "OutputError", "loop/out")
def _output_below_a_link_to_itself(site: Site) -> Invocation:
    site.copy_lens()
    (site.work / "loop").symlink_to("loop")
    return site.convert(output=site.work / "loop" / "out")


@case("output-name-too-long", "OutputError", "nnn", "too long")
def _output_name_too_long(site: Site) -> Invocation:
    # Long enough to leave no room for the staging folder's name; the folder above it is made first.
    site.copy_lens()
    return site.convert(output=site.work / "new" / ("n" * 250))


@case("staging-is-a-file", "OutputError", "out")
def _staging_is_a_file(site: Site) -> None:
    site.copy_lens()
    site.write("work/.out.lensconv", "precious")


@case("staging-is-a-link", "OutputError", "out")
def _staging_is_a_link(site: Site) -> None:
    site.copy_lens()
    (site.work / "elsewhere").mkdir()
    (site.work / ".out.lensconv").symlink_to("elsewhere")


@case("staging-holds-something-else", "OutputError", "thesis.txt", "not made by lensconv")
def _staging_holds_something_else(site: Site) -> None:
    site.copy_lens()
    site.write("work/.out.lensconv/thesis.txt", "precious")


@case("staging-of-another-conversion", "OutputError", "out", "an interrupted conversion differs", hint=("--restart",))
def _staging_of_another_conversion(site: Site) -> None:
    site.copy_lens()
    release = site.work / ".out.lensconv" / "release"
    release.mkdir(parents=True)
    status = release.stat()
    journal = {"identity": {"recipe": "another"}, "release": [status.st_dev, status.st_ino], "content": ""}
    site.write("work/.out.lensconv/journal", json.dumps(journal) + "\n")
