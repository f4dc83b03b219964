"""Faults that are set up beforehand: which requests they hit, how often, and what happens then."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from converter.rehearsal.replies import Refusal

#: What can happen: an answer of another status, a pause, the connection dropped before or after the effect; content
#: damaged or lost; a limit for private repos; a commit of somebody else.
ACTIONS = ("status", "delay", "drop_before", "drop_after", "corrupt", "forget", "quota", "move_head")
#: Those that change the state, and then let the request pass.
STATE_ACTIONS = ("corrupt", "forget", "quota", "move_head")
#: Seconds of the longest pause.
_LONGEST_DELAY = 600


@dataclass
class Fault:
    """A rule.

    Args:
        action: one of ``ACTIONS``.
        method: of the requests that it hits; empty for any.
        path: a regular expression, which must be found in the raw path, and in the query after a ``?``; without one
            an action that changes the state happens at once.
        times: requests that it hits; 0 for all.
        skip: matching requests that it lets pass before.
        status: the status of the answer.
        headers: its headers.
        body: its text.
        seconds: of a pause.
        sha256: the object that is damaged or lost.
        bytes: the limit for private repos of a namespace; None for no limit.
        repo: the page of the repo that gets a foreign commit, as in OWNER/NAME or datasets/OWNER/NAME.
        branch: the branch that it goes to.
    """

    action: str
    method: str = ""
    path: str = ""
    times: int = 1
    skip: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    seconds: float = 0.0
    sha256: str = ""
    bytes: int | None = None
    repo: str = ""
    branch: str = "main"

    def matches(self, method: str, address: str) -> bool:
        """Whether the rule is about a request."""
        return self.method in ("", method) and re.search(self.path, address) is not None


def parse_fault(values: object) -> Fault:
    """A rule from JSON.

    Raises:
        Refusal: it makes no sense.
    """
    if not isinstance(values, Mapping):
        raise Refusal(400, "A fault is an object")
    kinds: dict[str, tuple[type, ...]] = {
        "times": (int,),
        "skip": (int,),
        "status": (int,),
        "seconds": (int, float),
        "headers": (dict,),
        "bytes": (int, type(None)),
    }
    for name, value in values.items():
        if name not in Fault.__dataclass_fields__ or not isinstance(value, kinds.get(name, (str,))):
            raise Refusal(400, f"A fault has no member {name} of this type")
    if values.get("action") not in ACTIONS:
        raise Refusal(400, f"action is one of {', '.join(ACTIONS)}")
    fault = Fault(**values)
    if not 100 <= fault.status <= 599 or not 0 <= fault.seconds <= _LONGEST_DELAY or min(fault.times, fault.skip) < 0:
        raise Refusal(400, "A number of the fault is out of its range")
    if not fault.path and fault.action not in STATE_ACTIONS:
        raise Refusal(400, "The fault needs the path of the requests that it hits")
    try:
        re.compile(fault.path)
    except re.error as error:
        raise Refusal(400, f"path is no regular expression: {error}") from error
    return fault


class Faults:
    """The rules that are set up, and how many requests each is still to pass and to hit."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Set up a rule."""
        self._rules.append(fault)

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()

    def to_list(self) -> list[dict[str, Any]]:
        """The rules that are left, with what is left of them."""
        return [asdict(fault) for fault in self._rules]

    def due(self, method: str, address: str) -> list[Fault]:
        """Rules that hit a request. Each counts it."""
        hits = []
        for fault in list(self._rules):
            if not fault.matches(method, address):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            hits.append(fault)
            if fault.times == 1:
                self._rules.remove(fault)
            elif fault.times:
                fault.times -= 1
        return hits
