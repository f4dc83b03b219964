"""The local Hub as an ASGI application: its routes.

All other addresses are answered by 404, with a message that names the address.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from converter.rehearsal import (
    commit_api,
    files_api,
    history_api,
    lfs_files_api,
    listing_api,
    pages,
    pull_requests,
    repos_api,
    upload_api,
)
from converter.rehearsal.call import Call, Handler, identify
from converter.rehearsal.hub import Hub
from converter.rehearsal.replies import refuse, repo_not_found

_REPO = "/api/models/{owner}/{name}"
_GIT = "/{owner}/{name}.git/info/lfs"
_PAGE = "/{owner}/{name}"
#: Addresses that begin with an underscore are signed: they need no token.
_SIGNED = "/_"
_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/api/whoami-v2", repos_api.who_am_i),
    ("POST", "/api/repos/create", repos_api.create_repo),
    ("DELETE", "/api/repos/delete", repos_api.delete_repo),
    ("POST", "/api/repos/move", repos_api.move_repo),
    ("POST", "/api/validate-yaml", repos_api.validate_card),
    ("GET", "/api/models", listing_api.list_repos),
    ("GET", _REPO, listing_api.show_repo),
    ("GET", f"{_REPO}/revision/{{revision}}", listing_api.show_repo),
    ("GET", f"{_REPO}/auth-check", repos_api.check_access),
    ("GET", f"{_REPO}/auth-check/write", repos_api.check_write_access),
    ("PUT", f"{_REPO}/settings", repos_api.configure_repo),
    ("POST", f"{_REPO}/preupload/{{revision}}", upload_api.preupload),
    ("GET", f"{_REPO}/xet-write-token/{{revision}}", upload_api.xet_write_token),
    ("GET", f"{_REPO}/xet-read-token/{{revision}}", upload_api.xet_read_token),
    ("POST", f"{_REPO}/commit/{{revision}}", commit_api.create_commit),
    ("POST", f"{_REPO}/branch/{{branch}}", history_api.create_branch),
    ("DELETE", f"{_REPO}/branch/{{branch}}", history_api.delete_branch),
    ("POST", f"{_REPO}/tag/{{revision}}", history_api.create_tag),
    ("DELETE", f"{_REPO}/tag/{{revision}}", history_api.delete_tag),
    ("GET", f"{_REPO}/refs", history_api.list_refs),
    ("GET", f"{_REPO}/commits/{{revision}}", history_api.list_commits),
    ("POST", f"{_REPO}/super-squash/{{revision}}", history_api.squash),
    ("GET", f"{_REPO}/lfs-files", lfs_files_api.list_large_files),
    ("POST", f"{_REPO}/lfs-files/batch", lfs_files_api.delete_large_files),
    ("POST", f"{_REPO}/lfs-files/duplicate", lfs_files_api.duplicate_large_files),
    ("GET", f"{_REPO}/likers", listing_api.list_likers),
    ("DELETE", f"{_REPO}/like", listing_api.unlike),
    ("POST", f"{_REPO}/paths-info/{{revision}}", listing_api.show_paths),
    ("GET", f"{_REPO}/tree/{{revision}}", listing_api.list_tree),
    ("GET", f"{_REPO}/tree/{{revision}}/{{path:path}}", listing_api.list_tree),
    ("GET", f"{_REPO}/discussions", pull_requests.list_pull_requests),
    ("POST", f"{_REPO}/discussions", pull_requests.create_pull_request),
    ("GET", f"{_REPO}/discussions/{{number}}", pull_requests.show_pull_request),
    ("POST", f"{_REPO}/discussions/{{number}}/status", pull_requests.change_status),
    ("POST", f"{_REPO}/discussions/{{number}}/merge", pull_requests.merge),
    ("POST", f"{_GIT}/objects/batch", upload_api.lfs_batch),
    ("POST", f"{_GIT}/verify", upload_api.verify_object),
    ("PUT", f"{_SIGNED}lfs/{{oid}}", upload_api.put_object),
    ("PUT", f"{_SIGNED}lfs/{{oid}}/part/{{number}}", upload_api.put_part),
    ("POST", f"{_SIGNED}lfs/{{oid}}/complete", upload_api.complete_parts),
    ("GET", f"{_SIGNED}files/{{oid}}", files_api.send_object),
    ("GET", f"{_PAGE}/resolve/{{revision}}/{{path:path}}", files_api.resolve),
    ("GET", _PAGE, pages.show_page),
    ("GET", f"{_PAGE}/tree/{{revision}}", pages.show_page),
)


def make_application(hub: Hub) -> ASGIApp:
    """Return the application of a Hub."""
    application = Starlette(
        routes=[_route(hub, *route) for route in (*_ROUTES, *_without_owner())],
        # A page of another site may reach this machine under a name of its own.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
        exception_handlers={HTTPException: refuse, OSError: refuse},
    )
    application.router.redirect_slashes = False

    async def with_raw_path(scope: Scope, receive: Receive, send: Send) -> None:
        received = Headers(scope=scope)
        request_id = received.get("x-request-id", received.get("x-amzn-trace-id"))

        async def send_with_id(message: Message) -> None:
            if request_id is not None and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        # A branch such as refs/pr/1 is one part of a path only as long as its slashes are encoded.
        await application({**scope, "path": scope["raw_path"].decode("latin-1")}, receive, send_with_id)

    return with_raw_path


def _without_owner() -> list[tuple[str, str, Handler]]:
    """Return the routes of repos whose names have no owner. Only huggingface.co has such repos, and it moved them."""

    async def refuse_name(call: Call) -> Response:
        raise repo_not_found(call.viewer is not None)

    paths = [(method, path.replace("{owner}/", "")) for method, path, _ in _ROUTES if path != _PAGE]
    return [(method, path, refuse_name) for method, path in paths if "{name}" in path]


def _route(hub: Hub, method: str, path: str, handler: Handler) -> Route:
    async def answer(request: Request) -> Response:
        viewer = None
        if path.startswith(_SIGNED):
            hub.check_signature(f"{request.url.path}?{request.url.query}")
        else:
            viewer = identify(hub, request)
        return await handler(Call(hub, request, viewer))

    return Route(path, answer, methods=[method])
