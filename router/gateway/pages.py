"""The playground, the status page and those on errors: read once, sent under a policy that lets nothing else in.

The pages are open to everybody; what they show is asked for with the visitor's own key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.gateway.error_pages import page_paths

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/status": ("status.html", "text/html; charset=utf-8"),
    "/pages/baleen.css": ("baleen.css", "text/css; charset=utf-8"),
    **{
        f"/pages/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("money", "playground", "snippets", "status", "stream")
    },
}

PATHS = frozenset(_FILES) | frozenset(page_paths())
"""Open to everybody, for GET and HEAD."""


@dataclass(frozen=True, slots=True)
class _Page:
    body: bytes
    headers: dict[str, str]


def page_routes() -> list[Route]:
    """A route for each file."""
    pages = {path: _page(_file(name), kind) for path, (name, kind) in _FILES.items()}
    pages |= {path: _page(text.encode(), "text/plain; charset=utf-8") for path, text in page_paths().items()}

    async def serve(request: Request) -> Response:
        page = pages[request.scope["path"]]
        if request.headers.get("if-none-match") == page.headers["etag"]:
            return Response(status_code=304, headers=page.headers)
        return Response(page.body, headers=page.headers)

    return [Route(path, serve, methods=["GET"], include_in_schema=False) for path in pages]


def _file(name: str) -> bytes:
    return (files(__package__) / "static" / name).read_bytes()


def _page(body: bytes, content_type: str) -> _Page:
    headers = {
        "content-type": content_type,
        "etag": f'"{hashlib.sha256(body).hexdigest()[:16]}"',
        "cache-control": "no-cache",
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }
    return _Page(body, headers)
