"""Where cards come from: a file, or the README.md of a model repo on the Hub.

huggingface_hub does the fetching, with all that it reads from the environment: HF_ENDPOINT, HF_TOKEN, HF_HOME,
HF_HUB_OFFLINE. No message of lensconv repeats an address or a header, because either may hold a secret.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from converter.errors import HubError, MissingInput, UsageError, printable
from converter.prompts.card import MAXIMUM_CARD_BYTES
from converter.prompts.files import read_text_file

SCHEME = "hf://"
CARD_NAME = "README.md"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_PLACE = re.compile(rf"hf://(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,254}}))?")
_ACCESS_HINT = "Check the name; for a private repo set HF_TOKEN, or log in with `hf auth login`."


def read_card(place: str) -> str:
    """The text of a card.

    Args:
        place: a file, or ``hf://OWNER/NAME`` with an optional ``@REVISION`` for the README.md of a model repo.

    Raises:
        UsageError: an address with hf:// makes no sense.
        MissingInput: the file cannot be read.
        SuiteError: it is too long, or not UTF-8.
        HubError: the Hub refuses, lacks the card, or cannot be reached.
    """
    if place.lower().startswith(("http://", "https://")):
        raise UsageError(f"{printable(place)}: no file", "Write hf://OWNER/NAME for a model on the Hub.")
    if not place.lower().startswith(SCHEME):
        file = Path(place)
        if file.is_dir():
            raise MissingInput(f"{printable(place)}: is a folder", f"Name the card in it, such as {CARD_NAME}.")
        return read_text_file(file, MAXIMUM_CARD_BYTES)
    match = _PLACE.fullmatch(place)
    if match is None or any(double in place[len(SCHEME) :] for double in ("..", "--", "//")):
        raise UsageError(
            f"{printable(place)}: no model on the Hub", "Write hf://OWNER/NAME or hf://OWNER/NAME@REVISION."
        )
    return read_text_file(_download(place, match["repo"], match["revision"]), MAXIMUM_CARD_BYTES)


def _download(place: str, repo: str, revision: str | None) -> Path:
    # Importing this takes half a second, which a card in a file need not cost.
    from huggingface_hub import errors, hf_hub_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of httpx or httpx2, by version
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        """A bar that is never drawn."""

        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        return Path(hf_hub_download(repo, CARD_NAME, revision=revision, tqdm_class=Silent))
    except errors.GatedRepoError as error:
        raise HubError(
            f"{place}: the repo is gated",
            "Ask for access on its page, then set HF_TOKEN, or log in with `hf auth login`.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"{place}: there is no such model, or it is private", _ACCESS_HINT) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{place}: the repo has no such revision", "Name a branch, a tag or a commit of it.") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreached(place, error.__cause__) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{place}: the repo has no {CARD_NAME}", "Name a revision that has one.") from error
    except errors.HFValidationError as error:
        raise UsageError(
            f"{place}: no model on the Hub", "Write hf://OWNER/NAME or hf://OWNER/NAME@REVISION."
        ) from error
    except UnicodeError as error:
        raise HubError(f"{place}: the token is not ASCII", "Set HF_TOKEN again, or unset it.") from error
    # An address that makes no sense is a ValueError, and what hf_xet cannot do a RuntimeError.
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _unreached(place, error) from error
    finally:
        hub_logging.set_verbosity(verbosity)


def _unreached(place: str, cause: BaseException | None) -> HubError:
    """Say why the Hub did not give the card, by what its client came upon."""
    from huggingface_hub import errors

    if isinstance(cause, errors.HfHubHTTPError):
        status = cause.response.status_code
        hint = "Try again later."
        if status == 401:
            hint = "Set HF_TOKEN, or log in with `hf auth login`; if you have, the token is wrong or has expired."
        elif status < 500 and status != 429:
            hint = _ACCESS_HINT
        return HubError(f"{place}: the Hub answers with status {status}", hint)
    if isinstance(cause, errors.FileMetadataError):
        return HubError(
            f"{place}: what answers is not the Hub", "Check HF_ENDPOINT, and the settings of proxy and firewall."
        )
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return HubError(
            f"{place}: the card is not cached, and HF_HUB_OFFLINE forbids to ask the Hub", "Unset HF_HUB_OFFLINE."
        )
    if isinstance(cause, OSError) and cause.errno is not None and cause.filename is not None:
        where = printable(str(cause.filename))
        return HubError(f"{place}: {where} cannot be written: {cause.strerror}", "Set HF_HOME to another folder.")
    return HubError(
        f"{place}: the Hub cannot be reached", "Check the network, HF_ENDPOINT and the proxy, or give a file instead."
    )
