"""Routes of discussions and pull requests."""

from __future__ import annotations

from starlette.responses import Response

from converter.rehearsal.call import Call, text_of
from converter.rehearsal.discussions import Discussions, base_ref
from converter.rehearsal.replies import Refusal, reply

#: Discussions of one page, as on the Hub.
_PAGE = 10
_TYPES = {"all": (0, 1), "discussion": (0,), "pull_request": (1,)}
#: Statuses by what the client asks for; drafts count as open.
_STATUSES = {"all": ("open", "draft", "closed", "merged"), "open": ("open", "draft"), "closed": ("closed", "merged")}


async def list_discussions(call: Call) -> Response:
    """GET .../discussions."""
    repo, discussions, query = call.repo(), Discussions(call.hub), call.query
    kind, status, page = query.get("type", "all"), query.get("status", "all"), query.get("p", "0")
    if kind not in _TYPES or status not in _STATUSES or not page.isascii() or not page.isdecimal():
        raise Refusal(400, "Invalid filter")
    found = [
        row
        for row in discussions.all(repo)
        if row["is_pull_request"] in _TYPES[kind]
        and row["status"] in _STATUSES[status]
        and query.get("author", row["author"]) == row["author"]
    ]
    start = int(page) * _PAGE
    shown = [discussions.describe(repo, row) for row in found[start : start + _PAGE]]
    return reply({"discussions": shown, "count": len(found), "start": start, "numClosedDiscussions": 0})


async def create_discussion(call: Call) -> Response:
    """POST .../discussions."""
    repo, values, discussions = call.repo(), await call.json(), Discussions(call.hub)
    viewer = call.user()
    if viewer.role != "write":
        raise Refusal(403, "Forbidden: you must use a write token to open a discussion")
    title, description = text_of(values, "title"), text_of(values, "description")
    if len(title) < 3:
        raise Refusal(400, '"title" length must be at least 3 characters long')
    with call.hub.database.change():
        if values.get("pullRequest") is True:
            base = base_ref(call.hub.history.refs(repo))
            number = discussions.open_pull_request(repo, title, description, viewer.name, base=base, status="draft")
        else:
            number = discussions.open(repo, title, description, viewer.name)
    url = f"{call.hub.endpoint}/{repo.page}/discussions/{number}"
    return reply({"num": number, "url": url, "pullRequest": values.get("pullRequest") is True})


async def show_discussion(call: Call) -> Response:
    """GET .../discussions/N."""
    repo, discussions = call.repo(), Discussions(call.hub)
    return reply(discussions.describe_fully(repo, discussions.find(repo, int(call.part("number")))))


async def comment_discussion(call: Call) -> Response:
    """POST .../discussions/N/comment."""
    repo, values, discussions = call.repo(), await call.json(), Discussions(call.hub)
    viewer, number = call.user(), int(call.part("number"))
    discussions.find(repo, number)
    with call.hub.database.change():
        event = discussions.comment(repo, number, text_of(values, "comment"), viewer.name)
    return reply({"newMessage": event})


async def change_status(call: Call) -> Response:
    """POST .../discussions/N/status."""
    repo, values, discussions = call.repo(), await call.json(), Discussions(call.hub)
    number, status = int(call.part("number")), text_of(values, "status")
    row = discussions.find(repo, number)
    viewer = call.user()
    if row["author"] != viewer.name:
        call.writer(repo.owner, "change a discussion")
    if status not in ("open", "closed") or row["status"] == "merged":
        raise Refusal(400, "Invalid status")
    with call.hub.database.change():
        if comment := text_of(values, "comment"):
            discussions.comment(repo, number, comment, viewer.name)
        event = discussions.set_status(repo, number, status, viewer.name)
    return reply({"newStatus": event})


async def change_title(call: Call) -> Response:
    """POST .../discussions/N/title."""
    repo, values, discussions = call.repo(), await call.json(), Discussions(call.hub)
    number = int(call.part("number"))
    viewer = call.user()
    if discussions.find(repo, number)["author"] != viewer.name:
        call.writer(repo.owner, "change a discussion")
    with call.hub.database.change():
        event = discussions.set_title(repo, number, text_of(values, "title"), viewer.name)
    return reply({"newTitle": event})


async def merge(call: Call) -> Response:
    """POST .../discussions/N/merge."""
    repo, values, discussions = call.writable_repo(), await call.json(), Discussions(call.hub)
    number, viewer = int(call.part("number")), call.user()
    discussions.find(repo, number)
    with call.hub.database.change():
        if comment := text_of(values, "comment"):
            discussions.comment(repo, number, comment, viewer.name)
        commit = discussions.merge(repo, number, viewer.name)
    return reply({"mergeCommitId": commit})
