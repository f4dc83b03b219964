"""Where a pipeline repo is: a folder, or an address on the Hub whose files are downloaded first; without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from converter.checkpoint.source import PIPELINE_INDEX
from converter.console import SILENT, Reporter
from converter.conversion.release.manifest import MANIFEST_NAME, SUMMARY_NAME, listed_names
from converter.errors import InputError
from converter.hub.addresses import is_address, parse_address
from converter.hub.cached import open_cached
from converter.hub.shadow import shadowing
from converter.hub.snapshot import local_folders
from converter.measurement.generation.repo import names_another_pipeline, refuse_other_class


def pipeline_folders(
    places: Sequence[Path | str], reporter: Reporter = SILENT
) -> AbstractContextManager[tuple[Path, ...]]:
    """Give the folders of pipeline repos; of an address, what is needed is downloaded.

    Args:
        places: folders and addresses.
        reporter: shows what is downloaded.

    Raises:
        InputError: a folder is not a pipeline repo, though another place is an address.

    In the block, raises what ``local_folders`` raises. A repo that `generate` does not draw with is refused before it
    is downloaded.
    """
    addresses = [parse_address(place) for place in places if isinstance(place, str) and is_address(place)]
    for folder in (Path(place) for place in places if addresses and not is_address(str(place))):
        # A download may take an hour.
        if not names_another_pipeline(folder):
            refuse_other_class(folder)
    return local_folders(places, _examine, reporter)


def is_another_pipeline(place: Path | str) -> bool:
    """Whether a folder or an address is of a pipeline other than Lens; of an address, only its index is read.

    Raises:
        InputError: its index cannot be read, or is malformed.
        HubError: the Hub refuses, or cannot be reached.
    """
    if isinstance(place, str) and is_address(place):
        with shadowing(open_cached(parse_address(place)), lambda _: (), has_others=False) as shadow:
            return names_another_pipeline(shadow.folder)
    return names_another_pipeline(Path(place))


def _examine(folder: Path) -> Iterator[str]:
    """Refuse a repo that `generate` does not draw with; return the files that are read besides its components."""
    if names_another_pipeline(folder):
        # Imported here: it imports torch.
        from converter.measurement.generation.pipeline_loading import open_other_pipeline

        open_other_pipeline(folder, reads_headers=False)
    else:
        refuse_other_class(folder)
    yield from (PIPELINE_INDEX, MANIFEST_NAME, SUMMARY_NAME)
    # A benchmark looks for all files that a release should have.
    with suppress(InputError):
        yield from listed_names(folder) or ()
