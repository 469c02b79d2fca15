"""Who calls: stands before the whole application, and lets nothing through that is not on a closed list or has a key.

Only the method, the path as the server split it from the request line, and two headers decide. The Host header does
not, except where no keys are asked for: then it must name this machine, or any web page could speak for its visitor.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import Any

from baleen.errors import NotReady
from router.gateway.accounts.accounts import ANONYMOUS, Accounts, Charge
from router.gateway.accounts.records import Allowance, Key, Refused
from router.gateway.refusal import Headers, dialect_of, limit_headers, refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = frozenset({"/health", "/ping", "/ready"})
"""Paths that GET and HEAD reach without a key."""

CALLER = "baleen.caller"
"""Where in the scope of a call its Caller stands."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")
_INTERNAL = re.compile(rb"x-tenant|x-baleen-.*")


class Caller:
    """Whoever sent a call. key None: no keys are asked for. tenant: the only one whose cached prefixes it shares."""

    def __init__(self, accounts: Accounts, key: Key | None) -> None:
        self._accounts = accounts
        self.key = key
        self.tenant = key.tenant if key is not None else ANONYMOUS
        self.requests_left: Allowance | None = None
        self.tokens_left: Allowance | None = None

    def require_operator(self) -> None:
        """Raise Refused if the key may not see the cluster; where no keys are asked for, everybody may."""
        if self.key is not None and not self.key.is_operator:
            raise self._accounts.refuse("operator", "The API key is not an operator's, who alone may see the cluster.")

    def capped(self, priority: int) -> int:
        """The priority that a request of this caller has: ranks put it before tenants, so only operators raise it."""
        return priority if self.key is None or self.key.is_operator else min(priority, 0)

    async def open(
        self, *, request_id: str, model: str, served_as: str, prompt_tokens: int, output_tokens: int
    ) -> Charge:
        """Let a request start; see Accounts.open. Raises Refused or NotReady."""
        charge = await self._accounts.open(
            self.key,
            request_id=request_id,
            model=model,
            served_as=served_as,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )
        self.tokens_left = charge.tokens_left
        return charge


class Authentication:
    """ASGI middleware, the outermost. A call that passes has a Caller in its scope, a public one has none."""

    def __init__(
        self,
        app: Application,
        accounts: Accounts,
        *,
        check_keys: bool,
        public: Collection[str] = PUBLIC,
        hosts: Collection[str] | None = None,
    ) -> None:
        """hosts: names that a Host header may have where no keys are asked for; None: any."""
        self._app = app
        self._accounts = accounts
        self._check_keys = check_keys
        self._public = frozenset(public)
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        is_read = scope["method"] in ("GET", "HEAD")
        # whatever names a tenant or speaks between our own processes never comes from outside
        headers = [(name, value) for name, value in scope["headers"] if not _INTERNAL.fullmatch(name.lower())]
        scope = {**scope, "headers": headers}
        if is_read and scope["path"] in self._public:
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._caller(headers)
            if not is_read and caller.key is not None:
                caller.requests_left = await self._accounts.count_call(caller.key)
        except Refused as error:
            await _refuse(scope, send, error.status, error)
            return
        except NotReady as error:
            await _refuse(scope, send, 503, error)
            return
        scope[CALLER] = caller

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                limits = limit_headers(
                    caller.requests_left, caller.tokens_left, dialect_of(scope["path"]), wall_s=time.time()
                )
                message["headers"] = [*message.get("headers", ()), *limits]
            await send(message)

        await self._app(scope, receive, send_with_limits)

    async def _caller(self, headers: Headers) -> Caller:
        if self._check_keys:
            return Caller(self._accounts, await self._accounts.authenticate(_secrets(headers)))
        self._check_sender(headers)
        return Caller(self._accounts, None)

    def _check_sender(self, headers: Headers) -> None:
        """Raise Refused on what a page of somebody else may have sent from a browser on this machine."""
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if self._hosts is not None and (match is None or match[1].strip("[]").lower() not in self._hosts):
            raise self._foreign("The Host header does not name this machine, and no API keys are asked for here.")
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if any(origin.partition("://")[2] not in hosts for origin in origins):
            raise self._foreign("Pages of other origins may not call a gateway that asks for no API keys.")

    def _foreign(self, message: str) -> Refused:
        return self._accounts.refuse("origin", message)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def loopback_hosts(host: str) -> frozenset[str]:
    """Names of a gateway that listens on the loopback address `host`."""
    return frozenset({"localhost", "127.0.0.1", "::1", host.strip("[]").lower()})


def _secrets(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Every key that a call shows; what is shown in another way than ours stands as an empty one, which nobody has."""
    found = []
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name == b"authorization" and text:
            scheme, _, secret = text.partition(" ")
            found.append(secret.strip() if scheme.lower() == "bearer" else "")
        elif name == b"x-api-key" and text:
            found.append(text)
    return found


async def _refuse(scope: Scope, send: Send, status: int, error: Refused | NotReady) -> None:
    headers, body = refusal(status, error, dialect_of(scope["path"]))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
