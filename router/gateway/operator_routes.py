"""Routes about accounts and the cluster, for the pages and for operators; errors are left to the application."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import grpc.aio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.gateway import account_endpoints, cluster_view
from router.gateway.accounts.accounts import Accounts
from router.gateway.auth import CALLER, Caller

Routers = Callable[[], Sequence[tuple[str, grpc.aio.Channel]]]


def operator_routes(accounts: Accounts, routers: Routers) -> list[Route]:
    """GET /v1/usage, /user/balance, /v1/prices, and for operators /v1/cluster and /v1/requests/{id}.

    routers: address and channel of every router, as of now. Raised: InvalidRequest, UnknownName, Refused, NotReady.
    """

    async def usage(request: Request) -> Response:
        answer = await account_endpoints.usage(accounts, _caller(request), request.query_params, wall_s=time.time())
        return JSONResponse(answer)

    async def balance(request: Request) -> Response:
        return JSONResponse(await account_endpoints.balance(accounts, _caller(request)))

    async def prices(request: Request) -> Response:
        return JSONResponse(accounts.prices.shown())

    async def cluster(request: Request) -> Response:
        _caller(request).require_operator()
        return JSONResponse(await cluster_view.cluster(routers()))

    async def served_by(request: Request) -> Response:
        _caller(request).require_operator()
        channels = [channel for _, channel in routers()]
        return JSONResponse(await cluster_view.served_by(request.path_params["request_id"], channels))

    return [
        Route("/v1/usage", usage, methods=["GET"]),
        Route("/usage", usage, methods=["GET"]),
        Route("/user/balance", balance, methods=["GET"]),
        Route("/v1/user/balance", balance, methods=["GET"]),
        Route("/v1/prices", prices, methods=["GET"]),
        Route("/v1/cluster", cluster, methods=["GET"]),
        Route("/v1/requests/{request_id}", served_by, methods=["GET"]),
    ]


def _caller(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller
