"""Which handler answers which request. Paths are matched as they were sent, still percent-encoded.

A branch such as ``refs/pr/1`` is one part of a path only as long as its slashes are encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from converter.rehearsal import (
    accounts_api,
    commit_api,
    control_api,
    discussions_api,
    files_api,
    listing_api,
    pages,
    refs_api,
    upload_api,
)
from converter.rehearsal.call import Handler
from converter.rehearsal.replies import Refusal

_KIND = "(?P<kind>models|datasets|spaces)"
_ID = "(?P<owner>[^/]+)/(?P<name>[^/]+)"
_API = f"/api/{_KIND}/{_ID}"
_PAGE = f"/(?:(?P<kind>datasets|spaces)/)?{_ID}"
_GIT = "/(?:(?P<kind>datasets|spaces)/)?(?P<owner>[^/]+)/(?P<name>[^/]+?)\\.git/info/lfs"
_REV = "(?P<revision>[^/]+)"
_NUMBER = "(?P<number>[1-9][0-9]{0,8})"
_OID = "(?P<oid>[0-9a-f]{64})"

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/_control/faults", control_api.list_faults),
    ("POST", "/_control/faults", control_api.add_fault),
    ("DELETE", "/_control/faults", control_api.clear_faults),
    ("GET", "/_control/requests", control_api.list_requests),
    ("DELETE", "/_control/requests", control_api.clear_requests),
    ("GET", "/api/whoami-v2", accounts_api.who_am_i),
    ("POST", "/api/repos/create", accounts_api.create_repo),
    ("DELETE", "/api/repos/delete", accounts_api.delete_repo),
    ("POST", "/api/validate-yaml", accounts_api.validate_card),
    ("GET", f"/api/{_KIND}", listing_api.list_repos),
    ("GET", f"{_API}/auth-check", accounts_api.check_access),
    ("GET", f"{_API}/auth-check/write", accounts_api.check_write_access),
    ("PUT", f"{_API}/settings", accounts_api.configure_repo),
    ("POST", f"{_API}/preupload/{_REV}", upload_api.preupload),
    ("GET", f"{_API}/xet-write-token/{_REV}", upload_api.xet_write_token),
    ("GET", f"{_API}/xet-read-token/{_REV}", upload_api.xet_read_token),
    ("POST", f"{_API}/commit/{_REV}", commit_api.create_commit),
    ("POST", f"{_API}/branch/(?P<branch>[^/]+)", refs_api.create_branch),
    ("DELETE", f"{_API}/branch/(?P<branch>[^/]+)", refs_api.delete_branch),
    ("POST", f"{_API}/tag/{_REV}", refs_api.create_tag),
    ("DELETE", f"{_API}/tag/{_REV}", refs_api.delete_tag),
    ("GET", f"{_API}/refs", refs_api.list_refs),
    ("GET", f"{_API}/commits/{_REV}", refs_api.list_commits),
    ("POST", f"{_API}/super-squash/{_REV}", refs_api.super_squash),
    ("POST", f"{_API}/paths-info/{_REV}", listing_api.show_paths),
    ("GET", f"{_API}/tree/{_REV}(?:/(?P<path>.*))?", listing_api.list_tree),
    ("GET", f"{_API}/discussions", discussions_api.list_discussions),
    ("POST", f"{_API}/discussions", discussions_api.create_discussion),
    ("GET", f"{_API}/discussions/{_NUMBER}", discussions_api.show_discussion),
    ("POST", f"{_API}/discussions/{_NUMBER}/comment", discussions_api.comment_discussion),
    ("POST", f"{_API}/discussions/{_NUMBER}/status", discussions_api.change_status),
    ("POST", f"{_API}/discussions/{_NUMBER}/title", discussions_api.change_title),
    ("POST", f"{_API}/discussions/{_NUMBER}/merge", discussions_api.merge),
    ("GET", f"{_API}(?:/revision/{_REV})?", listing_api.show_repo),
    ("POST", f"{_GIT}/objects/batch", upload_api.lfs_batch),
    ("POST", f"{_GIT}/verify", upload_api.verify_object),
    ("PUT", f"/_lfs/{_OID}", upload_api.put_object),
    ("PUT", f"/_lfs/{_OID}/part/{_NUMBER}", upload_api.put_part),
    ("POST", f"/_lfs/{_OID}/complete", upload_api.complete_parts),
    ("GET", f"/_files/{_OID}", files_api.send_object),
)
#: What a browser shows. It changes nothing, and it alone takes a name and a password in place of a bearer token:
#: a browser sends these by itself, also where a page of another site makes it ask.
_BROWSER_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", f"{_PAGE}/resolve/{_REV}/(?P<path>.+)", files_api.resolve),
    ("GET", f"{_PAGE}/image/{_REV}/(?P<path>.+)", files_api.show_image),
    ("GET", "/", pages.show_all),
    ("GET", "/sign-in", pages.sign_in),
    ("GET", f"{_PAGE}(?:/card/{_REV})?", pages.show_card),
    ("GET", f"{_PAGE}/tree/{_REV}", pages.show_files),
    ("GET", f"{_PAGE}/commits/{_REV}", pages.show_commits),
    ("GET", f"{_PAGE}/commit/{_REV}", pages.show_commit),
    ("GET", f"{_PAGE}/discussions", pages.show_discussions),
    ("GET", f"{_PAGE}/discussions/{_NUMBER}", pages.show_discussion),
)


@dataclass(frozen=True)
class Route:
    """What answers a request."""

    handler: Handler
    parts: dict[str, str]
    """What the path names, still percent-encoded."""
    is_for_browsers: bool


_COMPILED = [
    (method, re.compile(pattern), handler, is_for_browsers)
    for routes, is_for_browsers in ((_ROUTES, False), (_BROWSER_ROUTES, True))
    for method, pattern, handler in routes
]


def find_route(method: str, path: str) -> Route:
    """What answers a request.

    Raises:
        Refusal: nothing does.
    """
    wanted = "GET" if method == "HEAD" else method
    other_methods: set[str] = set()
    for known, route in _matching(path):
        if known == wanted:
            return route
        other_methods.add(known)
    if other_methods:
        raise Refusal(405, "Method not allowed", headers={"Allow": ", ".join(sorted(other_methods))})
    raise Refusal(404, "Not found")


def _matching(path: str) -> Iterator[tuple[str, Route]]:
    for method, pattern, handler, is_for_browsers in _COMPILED:
        if (match := pattern.fullmatch(path)) is not None:
            parts = {name: value for name, value in match.groupdict().items() if value is not None}
            yield method, Route(handler, parts, is_for_browsers)
