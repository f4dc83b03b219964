"""Addresses, failures and retries of the Hub's client."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import ssl
import warnings
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import HubError, LensconvError, UsageError
from converter.hub.addresses import is_address, is_repo_id, parse_address
from converter.hub.client import quiet_hub
from converter.hub.failures import hub_failure, redact
from converter.hub.retry import Retry, is_transient, wait_seconds
from tests.cases import check_cases
from tests.expected import EXPECTED, check_expected
from tests.loopback import TOKEN, answered, client_module
from tests.reporters import Notes


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def test_addresses() -> None:
    """The repo and the revision of each, or what is wrong with it."""

    def outcome(text: str) -> list[str | None] | str:
        assert is_address(text)
        try:
            address = parse_address(text)
        except UsageError as error:
            return error.message
        assert str(address) == text
        return [address.repo_id, address.revision]

    check_cases("hub_addresses.jsonl", outcome)
    with pytest.raises(UsageError, match="a/b: not the address"):
        parse_address("a/b")


@given(st.from_regex(r"[a_.-]{0,4}/?([ab_.é-]{0,5}|b{95,97})(\.git)?", fullmatch=True))
def test_names_of_repos_are_those_that_the_client_takes(name: str) -> None:
    """But the Hub has no owner whose name begins with an underscore."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        taken = False
    else:
        taken = not re.match("_[^/]*/", name)
    assert (is_repo_id(name, with_owner=False), is_repo_id(name)) == (taken, taken and "/" in name)


def test_pages_are_not_shown() -> None:
    for page in (b"<!DOCTYPE html><p>blocked</p>", b"\n <HTML><p>blocked</p>"):
        error = answered(403, {"Content-Type": "text/plain"}, page)
        assert hub_failure("x", error).message == "x: the Hub answers with status 403"


def failures() -> list[BaseException]:
    """What the client or the system raises when the Hub does not answer."""
    from huggingface_hub import errors

    http = client_module()

    def caused(cause: BaseException, kind: type[BaseException] = http.ConnectError) -> BaseException:
        error = kind(f"cannot connect with {TOKEN}")
        error.__cause__ = cause
        return error

    missing = errors.LocalEntryNotFoundError("not there")
    missing.__cause__ = answered(404, {"X-Error-Code": "RevisionNotFound"})
    # Raised while another one was handled, not from it.
    gone, refused = errors.LocalEntryNotFoundError("not there"), http.ConnectTimeout("slow")
    gone.__context__, refused.__context__ = answered(402), ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    return [
        *(missing, errors.HFValidationError("no"), errors.OfflineModeIsEnabled("off"), errors.FileMetadataError("?")),
        *(gone, refused, errors.HfUriError("x", "no"), RuntimeError("xorb")),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        *(errors.OIDCError("no"), UnicodeEncodeError("ascii", "ä", 0, 1, "no")),
        *(json.JSONDecodeError("no", "<html>", 0), KeyError("sha")),
        OSError(errno.ENOSPC, "No space left on device", "/x"),
        PermissionError(errno.EACCES, "Permission denied", "/x"),
        RuntimeError(f"Data processing error: xet-write-token {TOKEN}"),
        ConnectionError("xet-write-token: 404 Not Found"),
        ConnectionError("xet-write-token: 503 Service Unavailable"),
        *(ConnectionError("xet-write-token: 403 Forbidden"), ConnectionError(f"Network error {TOKEN}")),
        *(http.TooManyRedirects("loop"), http.InvalidURL("no"), http.ProxyError("407"), http.ReadTimeout("slow")),
        caused(socket.gaierror(-2, "Name or service not known")),
        caused(ssl.SSLCertVerificationError("self-signed")),
        caused(ConnectionRefusedError(errno.ECONNREFUSED, "refused")),
        *(caused(ConnectionResetError(errno.ECONNRESET, "reset")), errors.LocalTokenNotFoundError("no")),
        *(errors.LocalEntryNotFoundError("no"), UnicodeDecodeError("utf-8", b"x", 0, 1, "no")),
        *(http.UnsupportedProtocol("no"), RuntimeError("Cannot acquire lock")),
        *(ConnectionError("xet-read-token: Timed Out"), ConnectionError()),
        *(OSError(errno.EDQUOT, "Disk quota exceeded"), http.ConnectError("x"), HubError("told already")),
        *(caused(TimeoutError()), TypeError("no"), AttributeError("no"), http.StreamClosed()),
        *(errors.EntryNotFoundError(), caused(answered(402), RuntimeError)),
        *(caused(cause, RuntimeError) for cause in (http.ReadTimeout("slow"), OSError(errno.ENOSPC, "Full"))),
        ConnectionError("xet-read-token: 0.503 s, 5030 bytes, 10.0.0.1:443, https://host/500 failed"),
        ConnectionError("error sending request for url (http://cas.invalid:9/v1/xorbs)"),
    ]


def told(error: BaseException) -> str:
    """What becomes of an exception, once it has been found to be safe to show."""
    failure = hub_failure("hf://a/b", error)
    text = f"{type(failure).__name__}: {failure.message} | {failure.hint}"
    assert not any(part in text for part in ("Secret", "https://", "other-token"))
    return text


def test_each_failure_is_told_in_one_line_with_a_hint() -> None:
    """Statuses and headers of answers are read from the file, beside what becomes of them."""
    kept = (EXPECTED / "hub_failures.txt").read_text("utf-8").splitlines()
    lines = []
    for asked in [line.partition(" =>")[0] for line in kept if line[0].isdigit()]:
        status, _, headers = asked.replace("<token>", TOKEN).partition(" ")
        lines.append(f"{asked} => {told(answered(int(status), json.loads(headers)))}\n")
    lines += [f"{type(error).__name__} => {told(error)}\n" for error in failures()]
    assert "done" not in [retried(*[error] * 8)[0] for error in failures()]
    check_expected("hub_failures.txt", "".join(lines))


def test_what_servers_say_is_made_safe() -> None:
    check_cases("redactions.jsonl", lambda text: redact(text.replace("<token>", TOKEN)))


def test_tokens_of_all_kinds_are_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "pa ss/word")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", " older \n")
    (tmp_path / "token").write_text("from-a-file\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert redact("pa ss/word pa%20ss%2Fword from-a-file given older", "given", "give") == "… … … … …"
    (tmp_path / "token").write_bytes(b"\xff")
    assert redact("older") == "…"


def test_a_quiet_client_is_as_before_afterwards(log: BufferingHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, progress_bar_states

    monkeypatch.setitem(progress_bar_states, "huggingface_hub.upload", True)
    logger, before = hub_logging.get_logger("huggingface_hub.test"), dict(progress_bar_states)

    def speak() -> None:
        with quiet_hub():
            assert are_progress_bars_disabled("huggingface_hub.upload")
            logger.warning("be careful")
            warnings.warn("be careful", stacklevel=1)
            logs.append(os.environ["HF_XET_LOG_DEST"])
            raise KeyError

    logs: list[str] = []
    with pytest.raises(KeyError):
        speak()
    assert "HF_XET_LOG_DEST" not in os.environ
    monkeypatch.setenv("HF_XET_LOG_DEST", "my.log")
    with pytest.raises(KeyError):
        speak()
    assert [*logs, os.environ["HF_XET_LOG_DEST"]] == [os.devnull, "my.log", "my.log"]
    assert progress_bar_states == before
    assert log.buffer == []
    logger.warning("be careful")
    assert [record.getMessage() for record in log.buffer] == ["be careful"]


def retried(*errors: BaseException, seconds: float = 300, **options: Any) -> tuple[str, list[float], list[str]]:
    """Call what fails with each error in turn and then returns; say what came of it, the waits and the notes."""
    slept: list[float] = []
    notes, rest = Notes(), list(errors)

    def function() -> str:
        if rest:
            raise rest.pop(0)
        return "done"

    # Time passes by sleeping.
    retry = Retry(seconds, clock=lambda: 100.0 + sum(slept), sleep=slept.append, reporter=notes)
    try:
        result = retry.call("hf://a/b", function, **options)
    except LensconvError as error:
        result = error.message if error.__cause__ is not None else "from nothing"
    return result, slept, notes.texts


def test_what_passes_is_tried_again() -> None:
    http = client_module()
    passing = [answered(429, {"Retry-After": "5"}), answered(502), json.JSONDecodeError("no", "<html>", 0)]
    passing += [http.ConnectError("x"), ConnectionError("xorb"), RuntimeError("hf_xet")]
    result, slept, notes = retried(*passing)
    assert (result, slept) == ("done", [5, 2, 4, 8, 16, 30])
    answers = ("429; trying again in 5 s", "502; trying again in 2 s")
    assert notes[:2] == [f"hf://a/b: the Hub answers {answer}" for answer in answers]
    assert "does not answer; trying again in 4 s" in notes[2]


def test_patience_ends() -> None:
    busy = [answered(503) for _ in range(99)]
    assert retried(*busy)[:2] == ("hf://a/b: the Hub answers with status 503", [1, 2, 4, 8, 16, 30, 30])
    assert retried(*busy, seconds=7)[1] == [1, 2, 4]
    # A shorter wait than the Hub asks for would be refused again.
    assert retried(answered(429, {"Retry-After": "400"}))[1] == []
    assert retried(answered(503), is_fatal=lambda error: error.response.status_code == 503)[1] == []


def test_the_hub_says_how_long() -> None:
    check_cases("waits.jsonl", lambda status, headers: wait_seconds(answered(status, headers), 3))


def test_what_does_not_pass_is_told_at_once() -> None:
    from huggingface_hub import errors

    http = client_module()
    untrusted = http.ConnectError("tls")
    untrusted.__cause__ = ssl.SSLCertVerificationError("self-signed")
    passing = [status for status in range(400, 600) if is_transient(answered(status))]
    assert passing == [408, 429, 500, 502, 503, 504]
    lasting = [untrusted, errors.OfflineModeIsEnabled("off"), ConnectionError("xet-write-token: 404")]
    lasting += [OSError(errno.ENOSPC, "No space left on device"), RecursionError(), KeyError("sha")]
    lasting += map(RuntimeError, ("cannot schedule new futures after shutdown", "Cannot acquire lock"))
    assert [error for error in lasting if is_transient(error)] == []
    busy = [TimeoutError(), http.RemoteProtocolError("x")]
    busy += [ConnectionError(f"xet-read-token: {said}") for said in ("503 Service Unavailable", "Timed Out")]
    assert all(map(is_transient, busy))
    # Errors that are not failures of the Hub stay as they are.
    for mistake in (ZeroDivisionError(), KeyboardInterrupt()):
        with pytest.raises(type(mistake)):
            retried(mistake)
