"""Routes for whoever rehearses: faults that are set up, and the log of requests."""

from __future__ import annotations

import hmac
import time

from starlette.responses import Response

from converter.rehearsal.accounts_api import move_head
from converter.rehearsal.call import Call
from converter.rehearsal.faults import STATE_ACTIONS, Fault, parse_fault
from converter.rehearsal.hub import Hub
from converter.rehearsal.names import PREFIXES, check_sha256
from converter.rehearsal.replies import Refusal, reply, repo_not_found

#: The header that carries the secret.
SECRET_HEADER = "x-control-secret"  # noqa: S105 - its name


def check_secret(call: Call) -> None:
    """Check that a request may control the Hub.

    Raises:
        Refusal: it may not.
    """
    secret, given = call.hub.settings.control_secret, call.request.headers.get(SECRET_HEADER, "")
    if not secret or not hmac.compare_digest(given.encode("latin-1"), secret.encode()):
        raise Refusal(404, "Not found")


async def add_fault(call: Call) -> Response:
    """POST /_control/faults: set up a rule, or change the state at once."""
    check_secret(call)
    fault = parse_fault(await call.json())
    if fault.action in STATE_ACTIONS and not fault.path:
        return reply(apply(call.hub, fault))
    call.hub.faults.add(fault)
    return reply({})


async def list_faults(call: Call) -> Response:
    """GET /_control/faults: rules that are left."""
    check_secret(call)
    return reply(call.hub.faults.to_list())


async def clear_faults(call: Call) -> Response:
    """DELETE /_control/faults: no rules any more, and no limit for private repos."""
    check_secret(call)
    call.hub.faults.clear()
    call.hub.database.remember("private_quota", "")
    return reply({})


async def list_requests(call: Call) -> Response:
    """GET /_control/requests: the log."""
    check_secret(call)
    return reply(call.hub.traffic.to_list())


async def clear_requests(call: Call) -> Response:
    """DELETE /_control/requests: an empty log."""
    check_secret(call)
    call.hub.traffic.clear()
    return reply({})


def apply(hub: Hub, fault: Fault) -> dict[str, str]:
    """Change the state as a fault says; gives what became of it.

    Raises:
        Refusal: what it names is not there.
    """
    if fault.action == "corrupt":
        hub.flip_byte(check_sha256(fault.sha256))
    elif fault.action == "forget":
        hub.forget(check_sha256(fault.sha256), time.time_ns())
    elif fault.action == "quota":
        hub.database.remember("private_quota", "" if fault.bytes is None else str(fault.bytes))
    else:
        return {"commit": _move_head(hub, fault)}
    return {}


def _move_head(hub: Hub, fault: Fault) -> str:
    kind = next((kind for kind, prefix in PREFIXES.items() if prefix and fault.repo.startswith(prefix)), "model")
    owner, _, name = fault.repo.removeprefix(PREFIXES[kind]).partition("/")
    repo = hub.history.find(kind, owner, name)
    if repo is None:
        raise repo_not_found(known_user=True)
    ref, head = hub.history.branch(repo, fault.branch)
    with hub.database.change():
        return move_head(hub.history, repo, ref, head)
