"""Read cards: from a file, or from the README.md of a model repo on the Hub.

huggingface_hub downloads them, and reads HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE from the environment.
Messages of lensconv never repeat an address or a header, because either may contain a secret.
"""

from __future__ import annotations

from pathlib import Path

from converter.conversion.release.manifest import CARD_NAME
from converter.errors import HubError, MissingInput, UsageError
from converter.hub.addresses import HubAddress, is_address, parse_address
from converter.hub.client import quiet_hub
from converter.hub.failures import client_errors, hub_failure
from converter.measurement.prompts.card import MAXIMUM_CARD_BYTES
from converter.measurement.prompts.files import read_text_file


def read_card(card: str) -> str:
    """The text of a card.

    Args:
        card: a file, or ``hf://OWNER/NAME`` with an optional ``@REVISION`` for the README.md of a model repo.

    Raises:
        UsageError: an address with hf:// is malformed, or it is a web address.
        MissingInput: the file cannot be read.
        SuiteError: it is too long, or not UTF-8.
        HubError: the Hub refuses, lacks the card, or cannot be reached.
        DiskError: the disk is full.
    """
    if card.lower().startswith(("http://", "https://")):
        raise UsageError(f"{card}: is not a file", "Write hf://OWNER/NAME for a model on the Hub.")
    if is_address(card):
        return read_text_file(_download(parse_address(card)), MAXIMUM_CARD_BYTES)
    file = Path(card)
    if file.is_dir():
        raise MissingInput(file, "is a folder", f"Name the card in it, such as {CARD_NAME}.")
    return read_text_file(file, MAXIMUM_CARD_BYTES)


def _download(address: HubAddress) -> Path:
    # This import takes half a second, which cards in files do not need.
    from huggingface_hub import errors, hf_hub_download

    try:
        with quiet_hub():
            return Path(hf_hub_download(address.repo_id, CARD_NAME, revision=address.revision))
    except errors.RemoteEntryNotFoundError as error:
        raise HubError(
            f"{address}: the repo has no {CARD_NAME}", "Give a revision that has one: hf://OWNER/NAME@REVISION."
        ) from error
    except client_errors() as error:
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            raise HubError(
                f"{address}: the card is not in the cache, and HF_HUB_OFFLINE is set", "Unset HF_HUB_OFFLINE."
            ) from error
        raise hub_failure(str(address), error) from error
