"""Where cards come from: a file, or the README.md of a model repo on the Hub.

huggingface_hub does the fetching, with all that it reads from the environment: HF_ENDPOINT, HF_TOKEN, HF_HOME,
HF_HUB_OFFLINE. No message of lensconv repeats an address or a header, because either may hold a secret.
"""

from __future__ import annotations

from pathlib import Path

from converter.conversion.release.manifest import CARD_NAME
from converter.errors import HubError, MissingInput, UsageError
from converter.hub.client import quiet_hub
from converter.hub.failures import client_errors, hub_failure
from converter.hub.places import HubPlace, is_place, parse_place
from converter.measurement.prompts.card import MAXIMUM_CARD_BYTES
from converter.measurement.prompts.files import read_text_file


def read_card(place: str) -> str:
    """The text of a card.

    Args:
        place: a file, or ``hf://OWNER/NAME`` with an optional ``@REVISION`` for the README.md of a model repo.

    Raises:
        UsageError: an address with hf:// makes no sense.
        MissingInput: the file cannot be read.
        SuiteError: it is too long, or not UTF-8.
        HubError: the Hub refuses, lacks the card, or cannot be reached.
        DiskError: there is no space for it.
    """
    if place.lower().startswith(("http://", "https://")):
        raise UsageError(f"{place}: no file", "Write hf://OWNER/NAME for a model on the Hub.")
    if is_place(place):
        return read_text_file(_download(parse_place(place)), MAXIMUM_CARD_BYTES)
    file = Path(place)
    if file.is_dir():
        raise MissingInput(place, "is a folder", f"Name the card in it, such as {CARD_NAME}.")
    return read_text_file(file, MAXIMUM_CARD_BYTES)


def _download(place: HubPlace) -> Path:
    # Importing this takes half a second, which a card in a file need not cost.
    from huggingface_hub import errors, hf_hub_download

    try:
        with quiet_hub():
            return Path(hf_hub_download(place.repo_id, CARD_NAME, revision=place.revision))
    except errors.RemoteEntryNotFoundError as error:
        raise HubError(f"{place}: the repo has no {CARD_NAME}", "Name a revision that has one.") from error
    except client_errors() as error:
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            raise HubError(
                f"{place}: the card is not cached, and HF_HUB_OFFLINE forbids to ask the Hub", "Unset HF_HUB_OFFLINE."
            ) from error
        raise hub_failure(str(place), error) from error
