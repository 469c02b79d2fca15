"""A gateway over real HTTP, attacked as others were: each test names the advisories that it is about."""

import asyncio
import json
import re
import time

import pytest

from baleen.accounts_config import KeysConfig
from baleen.errors import ConfigError
from baleen.gateway_config import GatewayConfig
from baleen.telemetry import Log
from baleen.text.tokenizer_files import tokenizer_files
from router.gateway.accounts.money import PICO
from router.gateway.accounts.secret import key_id
from router.gateway.accounts.sqlite_store import SqliteStore
from router.gateway.app import routes
from router.gateway.auth import PUBLIC
from router.gateway.config import GatewayProcessConfig
from router.gateway.main import Gateway
from router.gateway.pages import PATHS
from tests.support.fake_rank import FakeRank
from tests.support.gateway_server import DAYS, scenario
from tests.support.router_client import eventually

CHAT = {"model": "baleen", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


def every_path(gateway):
    """(method, a path that it matches, whether it is open) of every route of the application."""
    for route in routes(gateway.core):
        path = route.path
        for name in route.param_convertors:
            path = path.replace(f"{{{name}}}", "x").replace(f"{{{name}:path}}", "x")
        for method in sorted(route.methods or ("POST",)):
            yield method, path, path in PUBLIC | PATHS


def test_every_route_is_behind_a_key_but_a_closed_list(tmp_path):
    """CVE-2026-48746 (vLLM) and its like: `/invocations`, `/tokenize` and others answered without the key."""

    async def talk(gateway):
        seen, opened = 0, set()
        for method, path, is_open in every_path(gateway):
            reply = await gateway.call(method, path, {} if method == "POST" else None)
            assert (reply.status == 401) is not is_open, (method, path, reply.status)
            seen += 1
            if is_open:
                opened.add(path)
        assert seen > 40 and opened == PUBLIC | PATHS
        # nor does an address that leads nowhere tell so
        for target in ("/none", "/v1", "/metrics", "/docs", "/openapi.json", "/debug", "/v1/chat/completions/"):
            assert (await gateway.call("GET", target)).status == 401

    scenario(tmp_path, talk)


def test_hostile_hosts_and_request_lines_change_nothing(tmp_path):
    """CVE-2026-48710 (Starlette "BadHost") and CVE-2026-48746 (vLLM): the path was taken from the Host header."""
    hosts = ("x?", "x#", "x/foo", "x/a?", "x/health?", "localhost/health#", "x@127.0.0.1", "[::1]/health", "", "\\x")
    targets = (
        *("//v1/models", "/health/../v1/models", "/health/..%2fv1/models", "/./v1/models", "/%2e%2e/v1/models"),
        *("/v1/models;/health", "/v1/models?/health", "/v1/models%00/health", "/v1%2Fmodels", "/V1/MODELS"),
        *("/v1/models#/health", "/health%2f", "/health%00", "/health/", "//health", "/%2fhealth", "/HEALTH"),
        "http://127.0.0.1/v1/models",
    )
    overrides = (
        *(("X-HTTP-Method-Override", "GET"), ("X-Original-URL", "/health"), ("X-Rewrite-URL", "/health")),
        *(("X-Forwarded-Prefix", "/health"), ("X-Forwarded-Host", "localhost"), ("X-Forwarded-For", "127.0.0.1")),
        *(("Forwarded", "for=127.0.0.1;host=localhost"), ("X-Tenant", "root"), ("Upgrade", "websocket")),
    )

    async def talk(gateway):
        key = gateway.add_key()
        for host in hosts:
            assert (await gateway.call("GET", "/v1/models", host=host)).status in (400, 401), host
            assert (await gateway.call("POST", "/v1/chat/completions", CHAT, host=host)).status in (400, 401), host
        for target in targets:
            assert (await gateway.call("GET", target)).status in (400, 401), target
        for header in overrides:
            reply = await gateway.call("POST", "/v1/chat/completions", CHAT, headers=[header])
            assert reply.status in (400, 401), header
        # an encoded letter is that letter, for the check and for the route alike
        assert (await gateway.call("GET", "/%68ealth")).status == 200
        assert (await gateway.call("GET", "/v1/models", key=key)).status == 200
        assert not gateway.ranks[0].submits

    scenario(tmp_path, talk)


def test_bad_keys_are_refused_alike_and_look_up_nothing(tmp_path):
    """CVE-2025-59425 (vLLM: compared in variable time) and CVE-2026-42208 (LiteLLM: SQL in the check of the key)."""

    async def talk(gateway):
        good = gateway.add_key()
        bad = [
            *(good[:-1], good + "0", good[:24] + "0" * 48 + good[72:], good.upper(), good.replace("sk-", "")),
            *("' OR '1'='1", "'; DROP TABLE keys; --", '" UNION SELECT * FROM keys --', "sk-baleen-%-%", "*", "0"),
            "k" * 30_000,
        ]
        bodies = set()
        for secret in bad:
            reply = await gateway.call("GET", "/v1/models", key=secret)
            assert reply.status in (401, 431, 400), secret
            bodies |= {reply.body} if reply.status == 401 else set()
        assert len(bodies) == 1 and good.encode() not in bodies.pop()
        assert (await gateway.call("GET", "/v1/models", key=good)).status == 200
        assert all(secret not in line for line in gateway.log for secret in bad if len(secret) > 5)

    scenario(tmp_path, talk)


def test_a_tenant_cannot_reach_the_cache_of_another(tmp_path):
    """CVE-2025-46570 (vLLM: prompts of others told by time): the salt is the key's, what a client adds narrows it."""

    async def talk(gateway):
        keys = {tenant: gateway.add_key(tenant=tenant) for tenant in ("a", "ab", "1")}
        salts = {}
        for tenant, key in keys.items():
            for salt in (None, "a", "b", ":", "1:a:", "2:ab:", "a:1:"):
                body = CHAT if salt is None else CHAT | {"cache_salt": salt}
                headers = [("X-Tenant", "ab"), ("X-Baleen-Tenant", "ab")]
                reply = await gateway.call("POST", "/v1/chat/completions", body, key=key, headers=headers)
                assert reply.status == 200, reply.body
                salts[tenant, salt] = gateway.ranks[0].submits[-1].cache_salt
        assert len(set(salts.values())) == len(salts)
        assert all(salt.startswith(f"{len(tenant)}:{tenant}:") for (tenant, _), salt in salts.items())

    scenario(tmp_path, talk)


def test_a_page_of_somebody_else_cannot_speak_for_its_visitor(tmp_path):
    """CVE-2025-62593 (Ray: a browser and a name that changes its address led to code): loopback asks for no keys."""

    async def talk(gateway):
        assert (await gateway.call("POST", "/v1/chat/completions", CHAT)).status == 200
        for host in ("rebound.example", "127.0.0.1.nip.example", "localhost.evil", "x"):
            assert (await gateway.call("POST", "/v1/chat/completions", CHAT, host=host)).status == 403
            assert (await gateway.call("GET", "/metrics", host=host)).status == 403
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            headers = [("Origin", origin)]
            assert (await gateway.call("POST", "/v1/chat/completions", CHAT, headers=headers)).status == 403
        # what a form of another page can send without being asked
        sent = json.dumps(CHAT).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            lines = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nConnection: close"
            )
            raw = f"{lines}\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent
            assert b" 415 " in (await gateway.raw(raw)).split(b"\r\n")[0]
        assert len(gateway.ranks[0].submits) == 1

    scenario(tmp_path, talk, mode="auto")


def test_only_operators_raise_priorities_and_see_what_is_of_all_tenants(tmp_path):
    """Headers and fields that speak for others (ops 3.2: priority capped by key)."""

    async def talk(gateway):
        plain, operator = gateway.add_key(), gateway.add_key(is_operator=True)
        rank = gateway.ranks[0]
        for key, asked, given in ((plain, 5, 0), (plain, -3, -3), (operator, 5, 5)):
            body = CHAT | {"priority": asked}
            assert (await gateway.call("POST", "/v1/chat/completions", body, key=key)).status == 200
            assert rank.submits[-1].priority == given
        for path in ("/metrics", "/v1/cluster", "/v1/requests/x"):
            assert (await gateway.call("GET", path, key=plain)).status == 403
        seen = (await gateway.call("GET", "/v1/cluster", key=operator)).json()
        assert seen["routers"][0]["num_ranks"] == 1
        reply = await gateway.call("POST", "/v1/chat/completions", CHAT, key=operator)
        told = (await gateway.call("GET", f"/v1/requests/{reply.json()['id']}", key=operator)).json()
        assert told["ranks"], told

    scenario(tmp_path, talk)


def test_rights_end_everywhere_and_money_runs_out(tmp_path):
    """Keys that are revoked, expired, of other models or without money (ops 3.2: stolen keys)."""

    async def talk(gateway):
        revoked = gateway.add_key()
        assert (await gateway.call("POST", "/v1/chat/completions", CHAT, key=revoked)).status == 200
        store = SqliteStore(gateway.database)
        store.revoke(key_id(revoked), wall_s=time.time())
        store.close()
        # no request starts from that moment on, and within a second nothing else either
        assert (await gateway.call("POST", "/v1/chat/completions", CHAT, key=revoked)).status == 401

        other = gateway.add_key(models=("deepseek-v9",))
        refused = await gateway.call("POST", "/v1/chat/completions", CHAT, key=other)
        assert (refused.status, refused.json()["error"]["type"]) == (403, "permission_error")

        poor = gateway.add_key(balance=1)
        for path, kind in (("/v1/chat/completions", "unknown_error"), ("/v1/messages", "billing_error")):
            refused = await gateway.call("POST", path, CHAT, key=poor)
            assert (refused.status, refused.json()["error"]["type"]) == (402, kind)

        slow = gateway.add_key(requests_per_minute=1)
        first = await gateway.call("POST", "/v1/chat/completions", CHAT, key=slow)
        assert (first.status, first.headers["x-ratelimit-remaining-requests"]) == (200, "0")
        refused = await gateway.call("POST", "/v1/chat/completions", CHAT, key=slow)
        assert refused.status == 429 and 1 <= int(refused.headers["retry-after"]) <= 60

    scenario(tmp_path, talk)


def test_every_answer_is_paid_for_once_to_the_last_token(tmp_path):
    """Streams, whole answers, several at once and clients that leave: ledger, counters and usage say the same."""

    async def talk(gateway):
        key = gateway.add_key(balance=PICO, concurrency=8)
        rank: FakeRank = gateway.ranks[0]
        bodies = [CHAT, CHAT | {"stream": True, "stream_options": {"include_usage": True}}, CHAT | {"n": 2}]
        told = []
        for body in bodies:
            reply = await gateway.call("POST", "/v1/chat/completions", body, key=key)
            assert reply.status == 200, reply.body
            told.append(reply.events[-1]["usage"] if body.get("stream") else reply.json()["usage"])
        rank.token_delay_s = 0.05
        rank.num_cached_tokens = 64
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        long = [{"role": "user", "content": "Hello" * 20}]
        endless = {"stream": True, "max_tokens": 1000, "ignore_eos": True, "messages": long}
        sent = json.dumps(CHAT | endless).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent)
        async with asyncio.timeout(30):
            got = b""
            while not re.search(rb'"content": ?"[^"]', got):
                got += await reader.read(4096)
        writer.close()
        meters = gateway.accounts.meters
        await eventually(lambda: meters.entries["cancelled"] == 1)
        await eventually(lambda: rank.num_running == 0)
        usage = (await gateway.call("GET", "/v1/usage", key=key)).json()
        (day,) = usage["data"]
        # who leaves pays for what was computed, and as cached for what was not
        assert day["prompt_cache_hit_tokens"] == 64
        assert day["num_requests"] == 4 and meters.entries["finished"] == 3
        assert day["prompt_tokens"] == meters.hit_tokens + meters.miss_tokens
        assert day["completion_tokens"] == meters.completion_tokens
        whole = sum(one["completion_tokens"] for one in told)
        assert whole < day["completion_tokens"] < whole + 1000
        balance = (await gateway.call("GET", "/user/balance", key=key)).json()
        left = PICO - meters.cost
        assert balance["balance_infos"][0]["total_balance"] == f"{left / PICO:.12f}".rstrip("0")
        (entry,) = await gateway.accounts.usage(await gateway.accounts.authenticate([key]), **DAYS)
        assert entry.cost == meters.cost > 0

    scenario(tmp_path, talk)


def test_an_address_that_others_reach_asks_for_keys_unless_told_otherwise(tmp_path):
    """Deployments that were open by default (ShadowRay, CVE-2023-48022): the default is safe wherever it listens."""

    def gateway(mode, listen):
        (tmp_path / "tokenizer.json").write_text(tokenizer_files("bytes", max_length=4096).tokenizer_json)
        config = GatewayProcessConfig(
            listen=listen,
            routers=("127.0.0.1:1",),
            model=str(tmp_path),
            model_name="m",
            accounts=str(tmp_path / "none.db"),
            settings=GatewayConfig(keys=KeysConfig(mode=mode)),
        )
        return Gateway(config, log=Log("info", write=lines.append))

    async def run():
        for mode, listen in (("auto", "0.0.0.0:0"), ("auto", "[::]:0"), ("required", "127.0.0.1:0")):
            refused = gateway(mode, listen)
            with pytest.raises(ConfigError, match=r"no API key in .*none\.db"):
                await refused.start()
            await refused.stop()
        assert lines == [] or all("gateway.keys.mode is open" not in line for line in lines)
        # told so, and on loopback by default; both say it or are reached from here only
        for mode, listen in (("open", "0.0.0.0:0"), ("auto", "127.0.0.1:0")):
            opened = gateway(mode, listen)
            await opened.start()
            await opened.stop()
        assert sum("gateway.keys.mode is open" in line for line in lines) == 1

    lines = []
    asyncio.run(asyncio.wait_for(run(), 60))
