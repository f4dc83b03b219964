"""What tests of conversions from the Hub share: servers that fail, and what arrived."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter import errors
from tests.conftest import snapshot
from tests.loopback import Handler, LoopbackHub

WEIGHTS = "diffusion_pytorch_model.safetensors"
MANIFEST = "lensconv_manifest.json"
#: Bytes that a slow server sends at a time.
SENT_BYTES = 65536
Fault = Callable[[Handler], object]


def weights(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which says where the source was."""
    return {name: content for name, content in snapshot(folder).items() if name != MANIFEST}


def asked(hub: LoopbackHub, path: str) -> int:
    """How often the content of a file was asked for."""
    return sum(f"/lfs/{path}" in seen for _, seen, _ in hub.seen)


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return content


def refusal(call: Callable[[], object], kind: type[errors.LensconvError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    text = f"{caught.value.message} {caught.value.hint}"
    assert not any(secret in text for secret in ("Secret", "lensconv-", "Signature"))
    return text


def piece_of(handler: Handler) -> tuple[bytes, dict[str, str]]:
    """The bytes that a request for a range asks for, and the header of the right answer."""
    path = handler.path.partition("?")[0].removeprefix("/lfs/")
    content = (handler.hub.folder / path).read_bytes()
    start, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
    return content[start : last + 1], {"Content-Range": f"bytes {start}-{last}/{len(content)}"}


def reset(handler: Handler) -> None:
    """Half of the answer, then a broken connection."""
    content, headers = piece_of(handler)
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.hub.sent += len(content) // 2
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def short(handler: Handler) -> None:
    """Half of the answer, without its length, then the end."""
    content, headers = piece_of(handler)
    handler.send_response(206)
    for name, value in {**headers, "Connection": "close"}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.hub.sent += len(content) // 2
    handler.close_connection = True


def ignored_range(handler: Handler) -> None:
    """The whole file, whatever was asked for."""
    path = handler.path.partition("?")[0].removeprefix("/lfs/")
    handler.reply((handler.hub.folder / path).read_bytes())


def status(code: int, **headers: str) -> Fault:
    return lambda handler: handler.reply(b"<Error>", code, headers)


def some_times(hub: LoopbackHub, path: str, fault: Fault, times: int, skip: int = 0) -> None:
    """Let requests for a file fail so often, after some that do not."""
    counted = [0]

    def answer(handler: Handler) -> None:
        counted[0] += 1
        if skip < counted[0] <= skip + times:
            fault(handler)
        else:
            handler.piece(handler.hub.folder / handler.path.partition("?")[0].removeprefix("/lfs/"))

    hub.faults[f"/lfs/{path}"] = answer


def slow_down(hub: LoopbackHub, pause: float = 0.01) -> None:
    """Send weights in pieces with pauses, in seconds, so that a kill finds them on their way."""

    def slowly(handler: Handler) -> None:
        content, headers = piece_of(handler)
        handler.send_response(206)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        for start in range(0, len(content), SENT_BYTES):
            piece = content[start : start + SENT_BYTES]
            try:
                handler.wfile.write(piece)
            except OSError:
                handler.close_connection = True
                return
            handler.hub.sent += len(piece)
            time.sleep(pause)

    hub.faults["/lfs/"] = slowly
