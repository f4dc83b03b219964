"""Files of suites and cards: read up to a limit, written as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint.files import read_bounded
from converter.checkpoint.writer import refuse_taken_place, replace_file
from converter.errors import SuiteError, UsageError
from converter.measurement.prompts.checks import fail

#: Suffix of the names of suites.
SUFFIX = ".toml"
#: Longest suite that is read; ten prompts take some twenty thousand bytes.
MAXIMUM_SUITE_BYTES = 1_000_000


def refuse_place(output: Path, *, overwrite: bool) -> None:
    """Refuse an output file that cannot be written, before the suite is made.

    Raises:
        UsageError: the name does not end in .toml.
        OutputError: the file exists, or its folder cannot be written.
    """
    if output.suffix.lower() != SUFFIX:
        raise UsageError(f"--out {output}: a suite is a TOML file, so its name must end in {SUFFIX}")
    refuse_taken_place(output, overwrite=overwrite)


def write_suite_file(text: str, output: Path) -> None:
    """Write the text of a suite, as a whole or not at all.

    Raises:
        SuiteError: it is longer than the suites that lensconv reads.
        OutputError: it cannot be written.
        DiskError: the disk is full.
    """
    content = text.encode()
    if len(content) > MAXIMUM_SUITE_BYTES:
        fail(str(output), f"would have {len(content)} bytes, more than {MAXIMUM_SUITE_BYTES}", "Split the suite.")
    replace_file(output, content)


def read_text_file(file: Path, limit: int) -> str:
    """Read a whole file of UTF-8.

    Args:
        file: what to read; a byte order mark does not count.
        limit: bytes it may have.

    Raises:
        MissingInput: it does not exist, is not a file, or cannot be read.
        SuiteError: it is longer, or not UTF-8.
    """
    content = read_bounded(file, limit, SuiteError)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SuiteError(file, f"is not UTF-8 at byte {error.start}", "Save it again as UTF-8.") from error
