"""The gateway as an ASGI application: every path there is, and who may call it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from baleen.errors import BaleenError
from router.gateway import endpoints
from router.gateway.auth import PUBLIC, Application, Authentication, Receive, Scope, Send
from router.gateway.chat.reader import read_chat
from router.gateway.completions.reader import read_text
from router.gateway.core import Core
from router.gateway.dialect import Reader
from router.gateway.endpoints import Handler
from router.gateway.exchange import Exchange
from router.gateway.messages import models as message_models
from router.gateway.messages.reader import read_message, read_message_to_any
from router.gateway.operator_routes import operator_routes
from router.gateway.pages import PATHS, page_routes
from router.gateway.refusal import UnknownPath, WrongMethod, dialect_of, refusal, status_of
from router.gateway.responses.reader import read_response

_BASES = ("/v1", "", "/beta", "/beta/v1")
"""Where the endpoints of OpenAI's and DeepSeek's APIs stand."""

_DEEPSEEK_ANTHROPIC_BASES = ("/anthropic/v1", "/anthropic")


def routes(core: Core) -> list[BaseRoute]:
    """Every route."""
    found: list[BaseRoute] = []

    def exchange(name: str, reader: Reader, path: str, bases: Collection[str]) -> None:
        endpoint = Exchange(core, reader, name=name)
        # GET is for clients that come back to a stream
        found.extend(Route(base + path, endpoint, methods=["POST", "GET"]) for base in bases)

    def add(method: str, handler: Handler, path: str, bases: Collection[str] = ("",)) -> None:
        endpoint = endpoints.endpoint(core, handler)
        found.extend(Route(base + path, endpoint, methods=[method]) for base in bases)

    exchange("chat", read_chat, "/chat/completions", _BASES)
    exchange("completions", read_text, "/completions", _BASES)
    exchange("responses", read_response, "/responses", ("/v1", ""))
    exchange("messages", read_message, "/messages", ("/v1",))
    exchange("messages", read_message_to_any, "/messages", _DEEPSEEK_ANTHROPIC_BASES)
    add("POST", endpoints.count_tokens, "/messages/count_tokens", ("/v1", *_DEEPSEEK_ANTHROPIC_BASES))
    add("POST", endpoints.tokenize, "/tokenize", ("/v1", ""))
    add("POST", endpoints.detokenize, "/detokenize", ("/v1", ""))
    add("GET", endpoints.tokenizer_info, "/tokenizer_info", ("/v1", ""))
    add("GET", endpoints.models, "/models", _BASES)
    add("GET", endpoints.model, "/models/{name:path}", _BASES)
    add("GET", message_models.models, "/models", _DEEPSEEK_ANTHROPIC_BASES)
    add("GET", message_models.model, "/models/{name:path}", _DEEPSEEK_ANTHROPIC_BASES)
    add("GET", endpoints.health, "/health")
    add("GET", endpoints.health, "/ping")
    add("GET", endpoints.ready, "/ready")
    add("GET", endpoints.version, "/version")
    add("GET", endpoints.metrics, "/metrics")
    routers = [(link.address, link.channel) for link in core.engine.routers.links]
    return [*found, *operator_routes(core.accounts, lambda: routers), *page_routes()]


def application(core: Core, *, check_keys: bool, hosts: Collection[str] | None) -> Application:
    """Everything, behind the check of keys. hosts: see Authentication."""

    async def broken(request: Request, error: Exception) -> Response:
        # never its text: that may be the client's
        core.log.error("call failed by a fault of the gateway", error=type(error).__name__)
        return _refused(request, BaleenError("internal error of the gateway; its log has more"))

    handlers: dict[type[Exception], Any] = {HTTPException: _not_there, BaleenError: _refused, Exception: broken}
    app = Starlette(routes=routes(core), exception_handlers=handlers)
    # it would answer with an address made of the Host header
    app.router.redirect_slashes = False
    return Authentication(_straight(app), core.accounts, check_keys=check_keys, public=PUBLIC | PATHS, hosts=hosts)


def _straight(app: Starlette) -> Application:
    """The application, with answers of many pieces on no detour: nothing stands between them and their client."""
    exchanges: dict[str, Exchange] = {
        route.path: route.endpoint
        for route in app.routes
        if isinstance(route, Route) and isinstance(route.endpoint, Exchange)
    }

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.get(scope["path"]) if scope["type"] == "http" else None
        if exchange is not None and scope["method"] in ("POST", "GET"):
            await exchange(scope, receive, send)
        else:
            await app(scope, receive, send)

    return serve


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, BaleenError)
    status = status_of(error)
    headers, body = refusal(status, error, dialect_of(request.scope["path"]))
    return Response(body, status, {key.decode(): value.decode() for key, value in headers})


def _not_there(request: Request, error: Exception) -> Response:
    """A path or a method that is not there."""
    assert isinstance(error, HTTPException)
    path, method = request.scope["path"][:200], request.scope["method"][:20]
    if error.status_code != 405:
        return _refused(request, UnknownPath(f"Unknown request URL: {method} {path}. Please check the URL for typos."))
    response = _refused(request, WrongMethod(f"{method} is not a method of {path}"))
    response.headers.update(error.headers or {})
    return response
