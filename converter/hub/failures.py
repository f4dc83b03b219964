"""Errors of the Hub's client, turned into one line for people and a hint.

Messages never contain the address of a request, a header or a token. The text of a server is shown, because the server
often knows the reason best (which quota is full, which right is missing), but only after ``redact``. The client is
built on httpx in its major version 1 and on httpx2 in 2. Their classes have the same names, by which they are
recognised here.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from converter.errors import FULL_DISK, DiskError, HubError, LensconvError, UsageError, lacking, printable, reason_of
from converter.hub.hosts import XET_ERRORS, allow_hint, file_host, sender
from converter.hub.proxies import http_library, hub_proxy, malformed_proxy
from converter.libraries import missing_package

#: Characters of a server's text that are shown.
TEXT_LIMIT = 300
#: How many exceptions of a chain are examined.
CHAIN_LIMIT = 20

LOGIN_HINT = "Set HF_TOKEN, or log in with `hf auth login`."
ACCESS_HINT = "Check the name; for a private repo set HF_TOKEN, or log in with `hf auth login`."
TOKEN_HINT = "Set HF_TOKEN, or log in with `hf auth login`; if you have, the token is wrong or has expired."  # noqa: S105 - a hint
LATER_HINT = "Try again later."
STRANGER_HINT = "Check HF_ENDPOINT, and the settings of proxy and firewall."
NETWORK_HINT = "Check the network, HF_ENDPOINT and the proxy."
PROXY_HINT = "Check HTTPS_PROXY and NO_PROXY."
TRANSFER_HINT = "Run the command again later; if it fails again, set HF_HUB_DISABLE_XET=1."
XET_HINT = "Set HF_HUB_DISABLE_XET=1 and run the command again."

#: Reason that replaces the number of a status, where one is known, and what to do about it.
_STATUSES: dict[int, tuple[str, str]] = {
    400: ("", "Correct what the Hub reports, then run the command again."),
    401: ("", TOKEN_HINT),
    402: ("the Hub demands payment", "The account lacks the plan or the storage for this; see its billing page."),
    403: ("", "The token does not allow this, or the account has no storage left for it; see the token's settings."),
    404: ("the Hub has nothing at this address", ACCESS_HINT),
    408: ("the request took too long", LATER_HINT),
    409: (
        "the Hub reports a conflict",
        "If another program is changing the repo, try again later; otherwise delete or rename what exists already.",
    ),
    412: ("the repo has changed in the meantime", "Check what has changed, then run the command again."),
    413: ("a file is too large for the Hub", "Convert again with a smaller --max-shard-size, such as 2GB."),
    429: ("the Hub has received too many requests", "Wait a while, then run the command again to resume."),
}

#: Reason for an exception, and what to do about it, by the name of its class or of its nearest base class.
_CLASSES: dict[str, tuple[str, str]] = {
    "GatedRepoError": (
        "the repo is gated",
        "Request access on its page, then set HF_TOKEN, or log in with `hf auth login`.",
    ),
    "RepositoryNotFoundError": ("the model does not exist, or is private", ACCESS_HINT),
    "RevisionNotFoundError": ("the repo has no such revision", "Name a branch, a tag or a commit of it."),
    "EntryNotFoundError": ("the repo has no such file", "Give a revision that has it."),
    "DisabledRepoError": ("the repo has been disabled", "Its page says why."),
    "OfflineModeIsEnabled": ("HF_HUB_OFFLINE forbids requests to the Hub", "Unset HF_HUB_OFFLINE."),
    "LocalEntryNotFoundError": ("the Hub cannot be reached, and the file is not in the cache", NETWORK_HINT),
    "FileMetadataError": ("the server that answers is not the Hub", STRANGER_HINT),
    "LocalTokenNotFoundError": ("no token was found", LOGIN_HINT),
    "OIDCError": (
        "no token was found: the exchange that HF_OIDC_RESOURCE requests did not return one",
        "Unset HF_OIDC_RESOURCE and set HF_TOKEN, or check HF_OIDC_ID_TOKEN.",
    ),
    "UnicodeEncodeError": ("the token is not ASCII", "Set HF_TOKEN again, or unset it."),
    "JSONDecodeError": ("the answer is a page and not JSON", f"{LATER_HINT} {STRANGER_HINT}"),
    "UnicodeDecodeError": ("the answer is a page and not JSON", f"{LATER_HINT} {STRANGER_HINT}"),
    "LookupError": ("the answer could not be understood ({kind})", STRANGER_HINT),
    "TypeError": ("the answer could not be understood ({kind})", STRANGER_HINT),
    "AttributeError": ("the answer could not be understood ({kind})", STRANGER_HINT),
    "TooManyRedirects": ("there are too many redirects", STRANGER_HINT),
    "InvalidURL": ("the Hub cannot be reached: its address is malformed", "Check HF_ENDPOINT."),
    "UnsupportedProtocol": ("the Hub cannot be reached: its address is malformed", "Check HF_ENDPOINT."),
}

#: Why the Hub cannot be reached, by the class of an exception in the chain.
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLError, "the TLS connection failed"),
    (socket.gaierror, "its host name was not found"),
    (ConnectionRefusedError, "it refuses the connection"),
    (ConnectionResetError, "it closed the connection"),
    (TimeoutError, "it does not answer in time"),
)

#: Classes of httpx and httpx2 for requests without an answer.
NO_ANSWER = {"TimeoutException", "NetworkError", "RemoteProtocolError"}

_TOKEN = re.compile(r"(?:hf|api_org)_[A-Za-z0-9_-]+", re.IGNORECASE)
_AUTHORIZATION = re.compile(
    r"(authorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?|\b(?:bearer|basic)\s+(?=[^\s,;'\"]{8}))[^\s,;'\"]+", re.IGNORECASE
)
_ADDRESS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,19}://)(?:[^\s/?#@]*@)*(?P<rest>[^\s?#'\"<>]*)(?:[?#][^\s'\"<>]*)?", re.IGNORECASE
)


def hub_failure(what: str, error: BaseException) -> LensconvError:
    """Return the error for a failure of the Hub.

    Args:
        what: what was being done or read, such as ``hf://OWNER/NAME``; the message begins with it.
        error: an exception of the Hub's client, of hf_xet or of the system.

    Returns: the error to raise from it: UsageError for a name that a repo cannot have, DiskError for a full disk,
        DependencyError for a package that the client lacks, HubError for everything else. An error of lensconv comes
        back unchanged.
    """
    if isinstance(error, LensconvError):
        return error
    error = deciding(error)
    names = class_names(error)
    if isinstance(error, ImportError):
        return missing_package(f"{what}: the Hub's client lacks a package", error)
    if names & {"ValueError", "InvalidURL"} and (variable := malformed_proxy()):
        hint = f"Write it as http://HOST:PORT or socks5://HOST:PORT, or unset {variable}."
        return HubError(f"{what}: the Hub's client cannot use the proxy in {variable}", hint)
    if names & {"HFValidationError", "HfUriError"}:
        return UsageError(
            f"{what}: not the name of a model on the Hub", "Write OWNER/NAME, with letters, digits, '-', '_' and '.'."
        )
    if _is_refused_token(error):
        return HubError(f"{what}: the model does not exist, or the token gives no access to it", TOKEN_HINT)
    host = file_host(error)
    if host and "HfHubHTTPError" in names:
        # The text, the token and the name of the repo have nothing to do with it.
        status = answered_status(error) or 0
        hint = LATER_HINT if status >= 500 or status in (408, 429) else allow_hint(host)
        return HubError(f"{what}: {sender(host)} answers with status {status}", hint)
    known = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _CLASSES), None)
    if known is not None:
        message, hint = _CLASSES[known]
        return HubError(f"{what}: {message.format(kind=type(error).__name__)}", hint)
    if "HfHubHTTPError" in names:
        status = answered_status(error) or 0
        # The text of a broken server is rarely useful.
        return _status_failure(what, status, _server_text(error) if status < 500 else "")
    return _system_failure(what, error) or _network_failure(what, error)


def _is_refused_token(error: Any) -> bool:
    """Whether a token was sent, and may be the reason: the client takes every 401 for a repo that does not exist."""
    if "RepositoryNotFoundError" not in class_names(error) or answered_status(error) != 401:
        return False
    return bool(_sent_token(error)) and not error.response.headers.get("x-error-code")


def _status_failure(what: str, status: int, said: str = "") -> HubError:
    known, hint = _STATUSES.get(status, ("", LATER_HINT if status >= 500 else f"{LATER_HINT} {STRANGER_HINT}"))
    return HubError(f"{what}: {known or f'the Hub answers with status {status}'}{said and f': {said}'}", hint)


def _server_text(error: Any) -> str:
    text = error.server_message or ""  # huggingface_hub has stripped it.
    if text.lower().startswith(("<!doctype", "<html")):
        return ""
    # The text may contain the token that was sent, from any source.
    sent = _sent_token(error)
    # A full stop is removed: the text becomes part of a line.
    return redact(text, sent, sent.partition(" ")[2]).rstrip(".")


def _sent_token(error: Any) -> str:
    """The header with the token of the request; empty where there was none."""
    # A response that was made by hand has no request, and raises.
    with suppress(RuntimeError):
        return str(error.response.request.headers.get("authorization", ""))
    return ""


def _system_failure(what: str, error: BaseException) -> LensconvError | None:
    """The error for a fault of this machine; None for one of the network."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    where = f"{printable(str(error.filename))}: " if error.filename is not None else ""
    if error.errno in FULL_DISK:
        return DiskError(f"{what}: {where}{reason_of(error)}", "Free some space, or set HF_HOME to another disk.")
    lack = lacking(error, what)
    if lack is not None:
        return lack
    if error.filename is not None:
        return HubError(f"{what}: {where}{reason_of(error)}", "Check the path; HF_HOME sets where the cache is.")
    return None


def _network_failure(what: str, error: BaseException) -> HubError:
    """The error where there was no answer, or the transfer failed."""
    text = str(error)
    if is_locked(error):
        return HubError(f"{what}: another upload is running", "Wait for it to end, then run the command again.")
    if is_about_xet_token(error):
        status = xet_status(error)
        # 404 is the answer of a Hub without Xet; another status has to do with the Hub or with the token.
        if status is not None and status != 404:
            return _status_failure(what, status)
        if "timed out" in text.lower():
            return HubError(f"{what}: the Hub cannot be reached: it does not answer in time", NETWORK_HINT)
        return HubError(f"{what}: the Hub gives no access to its Xet storage", XET_HINT)
    if text.startswith("Consistency check failed"):
        return HubError(f"{what}: a file was received with another size than the Hub records", STRANGER_HINT)
    host = file_host(error)
    if type(error) in XET_ERRORS:
        hint = f"{allow_hint(host)} {TRANSFER_HINT}" if host else TRANSFER_HINT
        return HubError(f"{what}: the transfer failed{text and f': {redact(text)}'}", hint)
    if _found_nobody(error) and (variable := hub_proxy()):
        hint = f"Start the proxy, correct {variable}, or unset it."
        return HubError(f"{what}: the proxy in {variable} cannot be reached{_reason(error)}", hint)
    hint = PROXY_HINT if "ProxyError" in class_names(error) else NETWORK_HINT
    reason = f"{sender(host)} cannot be reached{_reason(error)}"
    return HubError(f"{what}: {reason}", allow_hint(host) if host else hint)


def _found_nobody(error: BaseException) -> bool:
    """Whether there was no connection at all; with a proxy, the first one is to the proxy."""
    if "ConnectTimeout" in class_names(error):
        return True
    return any(isinstance(link, (ConnectionRefusedError, socket.gaierror)) for link in chain(error))


def _reason(error: BaseException) -> str:
    links = list(chain(error))
    reasons = [reason for kind, reason in _REASONS if any(isinstance(link, kind) for link in links)]
    if "ProxyError" in class_names(error):
        reasons.insert(0, "the proxy refuses")
    if "TimeoutException" in class_names(error):
        reasons.append("it does not answer in time")
    return f": {reasons[0]}" if reasons else ""


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    link: BaseException | None = error
    for _ in range(CHAIN_LIMIT):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def deciding(error: BaseException) -> BaseException:
    """The exception behind a wrapper, if it says more: an answer of the Hub, a missing answer, or a full disk.

    The client's LFS path wraps what goes wrong as ``RuntimeError("Error while uploading …")``.
    """
    cause = error.__cause__ or error.__context__
    if "LocalEntryNotFoundError" in class_names(error) and cause is not None:
        # The client says where it did not find the file; the reason is in the exception before.
        return deciding(cause)
    link: BaseException | None = error if type(error) is RuntimeError else None
    for _ in range(CHAIN_LIMIT):
        if link is None:
            break
        full = isinstance(link, OSError) and link.errno in FULL_DISK
        if full or class_names(link) & {"HfHubHTTPError", *NO_ANSWER}:
            return link
        link = link.__cause__
    return error


def xet_status(error: BaseException) -> int | None:
    """The HTTP status in a message of hf_xet."""
    match = re.search(r"(?<![0-9.:])([45][0-9]{2})(?![0-9.])", re.sub(r"\S+://\S+", "", str(error)))
    return int(match[1]) if match else None


def is_about_xet_token(error: BaseException) -> bool:
    """Whether hf_xet did not get a token for the Xet storage."""
    return "xet-write-token" in str(error) or "xet-read-token" in str(error)


def answered_status(error: BaseException) -> int | None:
    """The status with which the Hub has answered; None if it has not answered, or the status is unknown."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    return xet_status(error) if is_about_xet_token(error) else None


def is_locked(error: BaseException) -> bool:
    """Whether another process has locked the records of hf_xet."""
    return type(error) is RuntimeError and "Cannot acquire lock" in str(error)


def class_names(error: BaseException) -> set[str]:
    """Names of an exception's class and base classes, which are the same in httpx and httpx2."""
    return {kind.__name__ for kind in type(error).__mro__}


def client_errors() -> tuple[type[Exception], ...]:
    """All exceptions that the Hub's client may raise and that ``hub_failure`` has a message for.

    A malformed address raises ValueError or InvalidURL, hf_xet raises RuntimeError, and an incomplete answer makes the
    client raise LookupError, TypeError or AttributeError. ImportError tells of a package that a proxy needs.
    """
    from huggingface_hub import errors

    http = http_library()
    return (
        http.HTTPError,
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
        ImportError,
    )


def redact(text: str, *secrets: str) -> str:
    """Make a server's text safe to show: no token, no header, no secret part of an address; one line, cut short.

    Args:
        text: a message of a server or a library.
        secrets: texts to hide besides the tokens of this user.
    """
    for secret in sorted({*secrets, *_tokens()}, key=len, reverse=True):
        for form in (secret, quote(secret, safe="")):
            if form:
                text = text.replace(form, "…")
    text = _ADDRESS.sub(lambda match: match["scheme"] + match["rest"], text)
    text = _AUTHORIZATION.sub(lambda match: f"{match[1]}…", text)
    return printable(" ".join(_TOKEN.sub("hf_…", text).split()), TEXT_LIMIT)


def _tokens() -> Iterator[str]:
    """The tokens that the client may use, without its own ``get_token``, which may send a request to renew one."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        yield os.environ.get(name, "").strip()
    with suppress(OSError, UnicodeError):
        yield Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8").strip()
