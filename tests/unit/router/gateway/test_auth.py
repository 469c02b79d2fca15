"""Authentication before an application: what passes, what is refused, and in which form."""

import asyncio
import json
import time

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route

from baleen.accounts_config import PriceConfig
from baleen.clock import SystemClock
from baleen.errors import InvalidRequest, NotReady
from baleen.telemetry import Log
from router.gateway.account_endpoints import balance, usage
from router.gateway.accounts.accounts import ANONYMOUS, Accounts
from router.gateway.accounts.money import PICO, PriceList, Usage
from router.gateway.accounts.records import Key, Refused
from router.gateway.accounts.secret import digest, key_id, new_secret
from router.gateway.accounts.sqlite_store import SqliteStore
from router.gateway.auth import CALLER, Authentication, is_loopback, loopback_hosts
from router.gateway.operator_routes import operator_routes

PRICES = PriceList([PriceConfig(model="m", input_miss="1", output="2")])


async def who(request):
    caller = request.scope[CALLER]
    return JSONResponse({"tenant": caller.tenant, "seen": request.headers.get("x-tenant")})


async def open_one(request):
    charge = await request.scope[CALLER].open(
        request_id=request.query_params["id"], model="m", served_as="m", prompt_tokens=1, output_tokens=9
    )
    charge.settle(Usage(miss_tokens=1, completion_tokens=9), "finished")
    return JSONResponse({})


async def healthy(request):
    return PlainTextResponse("ok")


ROUTES = [
    Route("/health", healthy),
    Route("/v1/who", who, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
    Route("/v1/messages", who, methods=["POST"]),
    Route("/v1/open", open_one, methods=["POST"]),
    Mount("/deep", routes=[Route("/who", who)]),
]


class Answer:
    def __init__(self, messages):
        self.status = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

    def json(self):
        return json.loads(self.body)


class Bench:
    def __init__(self, folder):
        self.path = folder / "accounts.db"

    def key(self, *, first=None, **limits):
        secret = new_secret()
        key = Key(key_id=key_id(secret), digest=digest(secret), tenant="acme", has_balance=first is not None, **limits)
        store = SqliteStore(self.path)
        store.add_key(key, balance=first)
        store.close()
        return secret

    def run(self, talk, **options):
        async def run():
            accounts = Accounts(self.path, PRICES, clock=SystemClock(), log=Log("off"))
            await accounts.start()
            self.accounts = accounts
            try:
                return await talk(Authentication(Starlette(routes=ROUTES), accounts, **options))
            finally:
                await accounts.close()

        return asyncio.run(run())


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


async def call(app, path, *, method="GET", key=None, headers=(), query=""):
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    if key is not None:
        raw.append((b"authorization", f"Bearer {key}".encode()))
    scope = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "root_path": "",
        "headers": raw,
    }
    await app(scope, receive, send)
    return Answer(sent)


def test_a_key_lets_in_and_says_who_it_is(bench):
    secret = bench.key()

    async def talk(app):
        for headers in (
            [("authorization", f"Bearer {secret}")],
            [("authorization", f"bearer   {secret}")],
            [("x-api-key", secret)],
            [("x-api-key", secret), ("authorization", f"Bearer {secret}")],
            [("x-api-key", ""), ("authorization", f"Bearer {secret}")],
        ):
            answer = await call(app, "/v1/who", headers=headers)
            assert (answer.status, answer.json()) == (200, {"tenant": "acme", "seen": None})

    bench.run(talk, check_keys=True)


def test_everything_else_is_refused_whatever_the_path_and_method(bench):
    bench.key()
    paths = [
        "/v1/who",
        "/deep/who",
        "/none",
        "/",
        "//health",
        "/health/",
        "/HEALTH",
        "/health/../v1/who",
        "",
        "/health\x00",
    ]

    async def talk(app):
        for path in paths:
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEALTH"):
                answer = await call(app, path, method=method)
                assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer", (path, method)
                assert (answer.body == b"") is (method == "HEAD")
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert (await call(app, "/health", method=method)).status == 401
        for method in ("GET", "HEAD"):
            assert (await call(app, "/health", method=method)).status == 200

    bench.run(talk, check_keys=True)


def test_bad_credentials_are_refused(bench):
    secret, other = bench.key(), bench.key()
    bad = [
        [("authorization", secret)],
        [("authorization", f"Basic {secret}")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", f"Bearer {secret} {secret}")],
        [("authorization", f"Bearer {secret}"), ("x-api-key", other)],
        [("authorization", f"Bearer {secret}"), ("authorization", "Bearer x")],
        [("x-api-key", secret[:-1])],
        [("x-api-key", "\xff\xfe")],
        [("x-api-key", "k" * 60_000)],
        [("api-key", secret)],
        [("cookie", f"key={secret}")],
    ]

    async def talk(app):
        for headers in bad:
            assert (await call(app, "/v1/who", headers=headers)).status == 401, headers
        # nor does a key count that stands in the address, where it would be logged
        assert (await call(app, "/v1/who", query=f"api_key={secret}&key={secret}")).status == 401

    bench.run(talk, check_keys=True)


def test_errors_have_the_form_of_the_dialect(bench):
    async def talk(app):
        openai = await call(app, "/v1/who")
        assert openai.json()["error"].keys() == {"message", "type", "param", "code", "doc"}
        assert openai.json()["error"]["type"] == "authentication_error"
        for path in ("/v1/messages", "/anthropic/v1/messages", "/v1/messages/count_tokens"):
            anthropic = (await call(app, path, method="POST")).json()
            assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "authentication_error")

    bench.run(talk, check_keys=True)


def test_headers_of_ours_do_not_come_from_outside(bench):
    secret = bench.key()

    async def talk(app):
        for name in ("x-tenant", "X-Tenant", "x-baleen-tenant"):
            answer = await call(app, "/v1/who", key=secret, headers=[(name, "victim")])
            assert answer.json() == {"tenant": "acme", "seen": None}

    bench.run(talk, check_keys=True)


def test_hosts_and_overrides_change_nothing_where_keys_are_checked(bench):
    secret = bench.key()
    headers = [
        ("host", "x?"),
        ("host", "x#"),
        ("host", "x/foo"),
        ("host", "x/health?"),
        ("host", "localhost/health#"),
        ("x-forwarded-host", "localhost"),
        ("x-forwarded-prefix", "/health"),
        ("x-original-url", "/health"),
        ("x-rewrite-url", "/health"),
        ("x-http-method-override", "GET"),
        ("forwarded", "for=127.0.0.1"),
        ("x-forwarded-for", "127.0.0.1"),
    ]

    async def talk(app):
        for header in headers:
            assert (await call(app, "/v1/who", headers=[header])).status == 401, header
            assert (await call(app, "/v1/who", key=secret, headers=[header])).status == 200, header

    bench.run(talk, check_keys=True)


def test_a_web_socket_is_closed(bench):
    async def talk(app):
        sent = []

        async def send(message):
            sent.append(message)

        await app({"type": "websocket", "path": "/health", "headers": []}, None, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]

    bench.run(talk, check_keys=True)


def test_limits_are_told_and_held(bench):
    secret = bench.key(requests_per_minute=2)

    async def talk(app):
        first = await call(app, "/v1/who", method="POST", key=secret)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert 0 < float(first.headers["x-ratelimit-reset-requests"][:-1]) <= 30
        assert (await call(app, "/v1/who", method="POST", key=secret)).status == 200
        refused = await call(app, "/v1/who", method="POST", key=secret)
        assert refused.status == 429 and refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 30 and int(refused.headers["retry-after-ms"]) <= 30_000
        # to look costs nothing
        assert (await call(app, "/v1/who", key=secret)).status == 200
        assert bench.accounts.meters.refused["requests"] == 1

    bench.run(talk, check_keys=True)


def test_limits_have_the_names_of_the_dialect(bench):
    secret = bench.key(requests_per_minute=60)

    async def talk(app):
        answer = await call(app, "/v1/messages", method="POST", key=secret)
        assert answer.headers["anthropic-ratelimit-requests-remaining"] == "59"
        assert time.strptime(answer.headers["anthropic-ratelimit-requests-reset"], "%Y-%m-%dT%H:%M:%SZ")

    bench.run(talk, check_keys=True)


def test_an_opened_request_tells_its_tokens(bench):
    secret = bench.key(tokens_per_minute=100)

    async def talk(app):
        answer = await call(app, "/v1/open", method="POST", key=secret, query="id=r1")
        assert answer.headers["x-ratelimit-remaining-tokens"] == "90"

    bench.run(talk, check_keys=True)


def test_keys_that_cannot_be_read_let_nobody_in(bench, monkeypatch):
    secret = bench.key()

    async def talk(app):
        async def fail(secrets):
            raise NotReady("the accounts cannot be used now: disk I/O error")

        monkeypatch.setattr(bench.accounts, "authenticate", fail)
        answer = await call(app, "/v1/who", key=secret)
        assert answer.status == 503 and answer.headers["retry-after"] == "1"

    bench.run(talk, check_keys=True)


def test_without_keys_only_this_machine_and_its_own_pages_are_answered(bench):
    good = ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"]
    bad = [
        "evil.example",
        "localhost.evil.example",
        "localhost/x",
        "localhost?",
        "localhost@evil",
        "",
        "127.0.0.1:x",
        "[::2]",
    ]

    async def talk(app):
        for host in good:
            answer = await call(app, "/v1/who", headers=[("host", host)])
            assert answer.json()["tenant"] == ANONYMOUS, host
            own = [("host", host), ("origin", f"http://{host}")]
            assert (await call(app, "/v1/who", method="POST", headers=own)).status == 200
        for host in bad:
            assert (await call(app, "/v1/who", headers=[("host", host)])).status == 403, host
        assert (await call(app, "/v1/who")).status == 403
        for origin in ("https://evil.example", "null", "http://localhost:1"):
            headers = [("host", "localhost"), ("origin", origin)]
            assert (await call(app, "/v1/who", method="POST", headers=headers)).status == 403, origin

    bench.run(talk, check_keys=False, hosts=loopback_hosts("127.0.0.1"))


def test_loopback_is_known():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "gateway"))


def test_usage_and_balance_are_the_callers_own(bench):
    secret, other = bench.key(first=PICO), bench.key()

    async def talk(app):
        await call(app, "/v1/open", method="POST", key=secret, query="id=r1")
        accounts, answers = bench.accounts, []

        async def look(scope, receive, send):
            caller = scope[CALLER]
            answers.append((await usage(accounts, caller, {}, wall_s=time.time()), await balance(accounts, caller)))
            await PlainTextResponse("")(scope, receive, send)

        inner = Authentication(look, accounts, check_keys=True)
        for key in (secret, other):
            await call(inner, "/x", key=key)
        (mine, left), (others, unlimited) = answers
        (day,) = mine["data"]
        assert (day["num_requests"], day["prompt_tokens"], day["total_tokens"], day["cost"]) == (1, 1, 10, "0.000019")
        assert left["balance_infos"][0]["total_balance"] == "0.999981" and left["is_available"]
        assert others["data"] == [] and unlimited == {"is_available": True, "balance_infos": []}
        caller = app
        for query, field in (
            ({"start_date": "2026-02-30"}, "start_date"),
            ({"end_date": "20260101"}, "end_date"),
            ({"end_date": "2026-W01-1"}, "end_date"),
            ({"start_date": "2026-01-02", "end_date": "2026-01-01"}, "start_date"),
            ({"start_date": "2020-01-02", "end_date": "2026-01-01"}, "start_date"),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await usage(accounts, caller, query, wall_s=time.time())
            assert caught.value.field == field

    bench.run(talk, check_keys=True)


def test_only_operators_see_the_cluster_and_everybody_the_prices(bench):
    plain, operator = bench.key(), bench.key(is_operator=True)

    async def refused(request, error):
        return JSONResponse({"said": str(error)}, status_code=error.status)

    async def talk(app):
        routes = operator_routes(bench.accounts, list)
        inner = Starlette(routes=routes, exception_handlers={Refused: refused})
        app = Authentication(inner, bench.accounts, check_keys=True)
        for path in ("/v1/cluster", "/v1/requests/x"):
            assert (await call(app, path, key=plain)).status == 403
        seen = await call(app, "/v1/cluster", key=operator)
        assert (seen.status, seen.json()) == (200, {"object": "cluster", "routers": []})
        prices = (await call(app, "/v1/prices", key=plain)).json()
        assert prices["currency"] == "USD" and prices["data"][0]["input_miss"] == "1"
        for path in ("/v1/usage", "/usage", "/user/balance", "/v1/user/balance"):
            assert (await call(app, path, key=plain)).status == 200
        open_to_all = Authentication(inner, bench.accounts, check_keys=False)
        assert (await call(open_to_all, "/v1/cluster", headers=[("host", "x")])).status == 200
        assert bench.accounts.meters.refused["operator"] == 2

    bench.run(talk, check_keys=True)
