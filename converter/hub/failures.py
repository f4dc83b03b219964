"""What the Hub's client raises, told to people in one line and a hint.

No message repeats an address, a header or a token. What a server says is shown, because it often knows better (which
quota, which right is missing), but only after ``redact``. The client is built on httpx in its major version 1 and on
httpx2 in 2; their classes have the same names, and go by these here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from converter.errors import DiskError, HubError, LensconvError, UsageError, printable

#: Characters of a server's text that are shown.
TEXT_LIMIT = 300
#: Links of a chain of exceptions that are looked at.
CHAIN_LIMIT = 20

ACCESS_HINT = "Check the name; for a private repo set HF_TOKEN, or log in with `hf auth login`."
TOKEN_HINT = "Set HF_TOKEN, or log in with `hf auth login`; if you have, the token is wrong or has expired."  # noqa: S105 - a hint
LATER_HINT = "Try again later."
STRANGER_HINT = "Check HF_ENDPOINT, and the settings of proxy and firewall."
NETWORK_HINT = "Check the network, HF_ENDPOINT and the proxy."
XET_HINT = "Set HF_HUB_DISABLE_XET=1 and run the command again."

#: What is known about a status: what to say instead of its number, where there is better, and what to do about it.
_STATUSES: dict[int, tuple[str, str]] = {
    400: ("", "Mend what it names, then run the command again."),
    401: ("", TOKEN_HINT),
    402: ("the Hub wants payment", "The account lacks the plan or the storage for this; see its billing page."),
    403: ("", "The token has no right to this, or the account has no storage left for it; see the token's settings."),
    404: ("the Hub has no such thing", ACCESS_HINT),
    408: ("the Hub has waited too long", LATER_HINT),
    409: ("what was to be made is there already, or is being changed by somebody else", "Look at the repo's page."),
    412: ("the repo changed in the meantime", "Look at what changed there, then run the command again."),
    413: ("what was sent is too large for the Hub", "Write smaller files: `lensconv convert --shard-bytes 5GB`."),
    429: ("the Hub has had too many requests", "Wait a while, then re-run to resume."),
}

#: The system's words for a disk, or a share of one, that is full.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

#: Classes of httpx and httpx2 for requests that got no answer.
NO_ANSWER = {"TimeoutException", "NetworkError", "RemoteProtocolError"}

_TOKEN = re.compile(r"(?:hf|api_org)_[A-Za-z0-9_-]+", re.IGNORECASE)
_AUTHORIZATION = re.compile(
    r"(authorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?|\b(?:bearer|basic)\s+(?=[^\s,;'\"]{8}))[^\s,;'\"]+", re.IGNORECASE
)
_ADDRESS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,19}://)(?:[^\s/?#@]*@)*(?P<rest>[^\s?#'\"<>]*)(?:[?#][^\s'\"<>]*)?", re.IGNORECASE
)


def hub_failure(what: str, error: BaseException) -> LensconvError:
    """Say what went wrong with the Hub.

    Args:
        what: what it went wrong with, such as ``hf://OWNER/NAME``; begins the message.
        error: what the Hub's client raised, hf_xet or the system.

    Returns: the error to raise from it: HubError for most, UsageError for a name that cannot be, DiskError for a disk
        that is full. What is such an error already comes back as it is.
    """
    from huggingface_hub import errors

    if isinstance(error, LensconvError):
        return error
    error = deciding(error)
    if isinstance(error, errors.LocalEntryNotFoundError):
        # The client says where it did not find something; why is in what it came upon before.
        cause = error.__cause__ or error.__context__
        return hub_failure(what, cause) if cause is not None else HubError(f"{what}: not in the cache", NETWORK_HINT)
    if isinstance(error, errors.HFValidationError | errors.HfUriError):
        return UsageError(f"{what}: no model on the Hub", "Write OWNER/NAME, of letters, digits, '-', '_' and '.'.")
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(what, error)
    return _system_failure(what, error) or _network_failure(what, error)


def _refusal(what: str, error: Any) -> HubError:
    """The Hub has answered, with a status that is none of success."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{what}: the repo is gated",
            "Ask for access on its page, then set HF_TOKEN, or log in with `hf auth login`.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        if error.response.status_code == 401 and _sent_token(error) and not error.response.headers.get("x-error-code"):
            # The client takes every 401 for a repo that is not there; a token that has been revoked gives one, too.
            return HubError(f"{what}: there is no such model, or the token gives no access to it", TOKEN_HINT)
        return HubError(f"{what}: there is no such model, or it is private", ACCESS_HINT)
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{what}: the repo has no such revision", "Name a branch, a tag or a commit of it.")
    if isinstance(error, errors.EntryNotFoundError):
        return HubError(f"{what}: the repo has no such file", "Name a revision that has it.")
    if isinstance(error, errors.DisabledRepoError):
        return HubError(f"{what}: the repo has been disabled", "Its page says why.")
    status = error.response.status_code
    # A server that is broken seldom says more than that.
    return _status_failure(what, status, _server_text(error) if status < 500 else "")


def _status_failure(what: str, status: int, said: str = "") -> HubError:
    known, hint = _STATUSES.get(status, ("", LATER_HINT if status >= 500 else ACCESS_HINT))
    return HubError(f"{what}: {known or f'the Hub answers with status {status}'}{said and f': {said}'}", hint)


def _server_text(error: Any) -> str:
    text = error.server_message or ""
    if text.lstrip().lower().startswith(("<!doctype", "<html")):
        return ""
    # Whatever token was sent, from wherever it came, is in there.
    sent = _sent_token(error)
    # What is shown is a sentence already, or part of one.
    return redact(text, sent, sent.partition(" ")[2]).rstrip(".")


def _sent_token(error: Any) -> str:
    """The header that proved who asked; empty where there was none."""
    # An answer that was made by hand has no request, and says so by raising.
    with suppress(RuntimeError):
        return str(error.response.request.headers.get("authorization", ""))
    return ""


def _system_failure(what: str, error: BaseException) -> LensconvError | None:
    """The machine or its settings are at fault, and the network is not; None when that cannot be said."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"{what}: HF_HUB_OFFLINE forbids to ask the Hub", "Unset HF_HUB_OFFLINE.")
    if isinstance(error, errors.FileMetadataError):
        return HubError(f"{what}: what answers is not the Hub", STRANGER_HINT)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return HubError(f"{what}: there is no token", "Set HF_TOKEN, or log in with `hf auth login`.")
    if isinstance(error, errors.OIDCError):
        return HubError(
            f"{what}: there is no token: the exchange that HF_OIDC_RESOURCE asks for gave none",
            "Unset HF_OIDC_RESOURCE and set HF_TOKEN, or see to HF_OIDC_ID_TOKEN.",
        )
    if isinstance(error, UnicodeEncodeError):
        return HubError(f"{what}: the token is not ASCII", "Set HF_TOKEN again, or unset it.")
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return HubError(f"{what}: the answer is a page and not JSON", f"{LATER_HINT} {STRANGER_HINT}")
    if isinstance(error, LookupError | TypeError | AttributeError):
        return HubError(f"{what}: the answer makes no sense ({type(error).__name__})", STRANGER_HINT)
    if not isinstance(error, OSError) or error.errno is None:
        return None
    where = f"{printable(str(error.filename))}: " if error.filename is not None else ""
    if error.errno in FULL_DISK:
        return DiskError(f"{what}: {where}{error.strerror}", "Free some space, or set HF_HOME to another disk.")
    if error.filename is not None:
        return HubError(f"{what}: {where}{error.strerror}", "Check the path; HF_HOME sets where the cache is.")
    return None


def _network_failure(what: str, error: BaseException) -> HubError:
    """Nothing has answered, or what came cannot be used."""
    names = class_names(error)
    text = str(error)
    if is_locked(error):
        return HubError(f"{what}: another upload is running", "Wait for it to end, then run the command again.")
    if is_about_xet_token(error):
        status = xet_status(error)
        # What a Hub without Xet answers tells of Xet; anything else tells of the Hub or of the token.
        if status is not None and status != 404:
            return _status_failure(what, status)
        if "timed out" in text.lower():
            return HubError(f"{what}: the Hub cannot be reached: it does not answer in time", NETWORK_HINT)
        return HubError(f"{what}: the Hub gives no access to its Xet storage", XET_HINT)
    if type(error) in (RuntimeError, ConnectionError):
        # hf_xet has no classes of its own.
        return HubError(f"{what}: the transfer failed{text and f': {redact(text)}'}", f"{LATER_HINT} {XET_HINT}")
    if "TooManyRedirects" in names:
        return HubError(f"{what}: one address leads to the next, without end", STRANGER_HINT)
    if "InvalidURL" in names or "UnsupportedProtocol" in names:
        return HubError(f"{what}: the Hub cannot be reached: its address makes no sense", "Check HF_ENDPOINT.")
    if "ProxyError" in names:
        return HubError(f"{what}: the Hub cannot be reached: the proxy refuses", "Check HTTPS_PROXY and NO_PROXY.")
    return HubError(f"{what}: the Hub cannot be reached{_reason(error)}", NETWORK_HINT)


def _reason(error: BaseException) -> str:
    reasons: tuple[tuple[type[BaseException], str], ...] = (
        (ssl.SSLError, "no secure connection"),
        (socket.gaierror, "its name is not known"),
        (ConnectionRefusedError, "it refuses the connection"),
        (ConnectionResetError, "it broke off the connection"),
        (TimeoutError, "it does not answer in time"),
    )
    links = list(chain(error))
    for kind, reason in reasons:
        if any(isinstance(link, kind) for link in links):
            return f": {reason}"
    return ": it does not answer in time" if "TimeoutException" in class_names(error) else ""


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    link: BaseException | None = error
    for _ in range(CHAIN_LIMIT):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def deciding(error: BaseException) -> BaseException:
    """What a wrapper was raised from, where that says more: an answer of the Hub, none at all, or a full disk.

    The client's LFS path wraps what goes wrong as ``RuntimeError("Error while uploading …")``.
    """
    from huggingface_hub import errors

    link: BaseException | None = error if type(error) is RuntimeError else None
    for _ in range(CHAIN_LIMIT):
        if link is None:
            break
        full = isinstance(link, OSError) and link.errno in FULL_DISK
        if full or isinstance(link, errors.HfHubHTTPError) or class_names(link) & NO_ANSWER:
            return link
        link = link.__cause__
    return error


def xet_status(error: BaseException) -> int | None:
    """The status of HTTP that a text of hf_xet holds."""
    match = re.search(r"(?<![0-9.:])([45][0-9]{2})(?![0-9.])", re.sub(r"\S+://\S+", "", str(error)))
    return int(match[1]) if match else None


def is_about_xet_token(error: BaseException) -> bool:
    """Whether hf_xet did not get leave to use the Xet storage."""
    return "xet-write-token" in str(error) or "xet-read-token" in str(error)


def answered_status(error: BaseException) -> int | None:
    """The status with which the Hub has answered; None where it has not, or that cannot be told."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    return xet_status(error) if is_about_xet_token(error) else None


def is_locked(error: BaseException) -> bool:
    """Whether hf_xet finds its records taken by another process."""
    return type(error) is RuntimeError and "Cannot acquire lock" in str(error)


def class_names(error: BaseException) -> set[str]:
    """Names of an exception's classes, which are the same in httpx and httpx2."""
    return {kind.__name__ for kind in type(error).__mro__}


def client_errors() -> tuple[type[Exception], ...]:
    """Everything that a call of the Hub's client may raise and ``hub_failure`` knows a sentence for.

    An address that makes no sense is a ValueError, or an InvalidURL; what hf_xet cannot do a RuntimeError; an answer
    that lacks something a LookupError, TypeError or AttributeError of the client.
    """
    import importlib

    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of httpx or httpx2, by version

    http = importlib.import_module(HTTPError.__module__.partition(".")[0])
    return (
        HTTPError,
        http.InvalidURL,
        http.StreamError,
        errors.EntryNotFoundError,
        errors.OIDCError,
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
        AttributeError,
    )


def redact(text: str, *secrets: str) -> str:
    """Make a server's text safe to show: no token, no header, no secret part of an address; one line, cut short.

    Args:
        text: what a server or a library said.
        secrets: more texts that must not be seen; the token in use always is one.
    """
    for secret in sorted({*secrets, *_tokens()}, key=len, reverse=True):
        for form in (secret, quote(secret, safe="")):
            if form:
                text = text.replace(form, "…")
    text = _ADDRESS.sub(lambda match: match["scheme"] + match["rest"], text)
    text = _AUTHORIZATION.sub(lambda match: f"{match[1]}…", text)
    return printable(" ".join(_TOKEN.sub("hf_…", text).split()), TEXT_LIMIT)


def _tokens() -> Iterator[str]:
    """The tokens that the client may use. Its own ``get_token`` could go out and renew one, which no message may do."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        yield os.environ.get(name, "").strip()
    with suppress(OSError, UnicodeError):
        yield Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8").strip()
