"""The gateway as raw HTTP: silence, departures, slow readers, limits, and paths that are not there."""

import asyncio
import json
import socket

import pytest

from baleen.errors import QueueFull
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2
from router.gateway.core import HttpLimits
from router.gateway.http_server import MAX_HEAD_BYTES, HttpServer
from tests.support.http_gateway import http_gateway
from tests.support.router_client import eventually, run
from tests.support.tiny_tokenizer import tiny_tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer())
CHAT = {"model": "deepseek-chat", "messages": [{"role": "user", "content": "hi"}]}


def reply(prompt):
    if "queue" in prompt:
        return QueueFull("no room", retry_after_s=3.2)
    return "the thing " * (20_000 if "long" in prompt else 20)


async def ask(url, body, *, path="/v1/chat/completions", method="POST", headers=()):
    """A connection that has sent a request: reader and writer."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Content-Type: application/json",
        f"Content-Length: {len(raw)}",
        *headers,
    ]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + raw)
    return reader, writer


async def answer(url, body, **options):
    """Status, headers and body of an answer with a length."""
    reader, writer = await ask(url, body, **options)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    content = await reader.readexactly(int(headers["content-length"]))
    writer.close()
    return int(head[0].split()[1]), headers, content


def test_a_client_that_leaves_ends_its_request_streamed_or_not(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            served.router.hold_after = 3
            for stream in (True, False):
                reader, writer = await ask(served.url, CHAT | {"stream": stream})
                if stream:
                    await reader.readuntil(b'"content":"')
                else:
                    await eventually(lambda: len(served.router.requests) == 2)
                writer.transport.abort()
                await eventually(lambda stream=stream: len(served.router.cancelled) == (1 if stream else 2))
            await eventually(lambda: served.core.meters.active == 0)
            assert served.core.meters.disconnects == 2
            assert served.core.meters.requests == {("chat", "4xx"): 2}
            days = await served.core.accounts.usage(None, first_day="0001-01-01", last_day="9999-01-01")
            assert [day.num_requests for day in days] == [2]

    run(scenario())


def test_silence_is_broken_by_comments_or_empty_lines(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            served.core.http = HttpLimits(keep_alive_s=0.05)
            served.router.hold_after = 0
            reader, writer = await ask(served.url, CHAT | {"stream": True})
            await reader.readuntil(b": keep-alive\n\n")
            whole, other = await ask(served.url, CHAT)
            head = await whole.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await whole.readuntil(b"\n\r\n") == b"1\r\n\n\r\n"
            served.router.go.set()
            await reader.readuntil(b"data: [DONE]\n\n")
            rest = await whole.readuntil(b"0\r\n\r\n")
            assert b'"finish_reason": "stop"' in rest
            writer.close()
            other.close()

    run(scenario())


def test_a_failure_after_the_first_bytes_is_told_in_the_stream(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            served.router.fail_after = 2
            reader, writer = await ask(served.url, CHAT | {"stream": True})
            text = (await reader.readuntil(b"[DONE]")).decode()
            assert '"finish_reason":"insufficient_system_resource"' in text
            writer.close()

    run(scenario())


def test_an_answer_in_a_wall_is_an_error_of_its_own(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            served.router.fail_after, served.router.fail_reason = 2, common_pb2.FINISH_REASON_DEAD_END
            reader, writer = await ask(served.url, CHAT | {"stream": True})
            streamed = (await reader.readuntil(b"[DONE]")).decode()
            assert '"code": "form_not_kept"' in streamed or '"code":"form_not_kept"' in streamed
            assert "insufficient_system_resource" not in streamed
            writer.close()
            reader, writer = await ask(served.url, CHAT)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 422 ")
            body = await reader.readuntil(b"}}")
            assert json.loads(body)["error"]["code"] == "form_not_kept"
            writer.close()

    run(scenario())


def test_a_reader_that_takes_nothing_holds_little_and_is_let_go(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            served.core.http = HttpLimits(stall_s=0.3)
            host, port = served.url.removeprefix("http://").split(":")
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
            raw = json.dumps(
                CHAT
                | {"messages": [{"role": "user", "content": "long"}], "stream": True, "max_tokens": 60_000}
                # much for each token, so that the buffers between here and there are soon full
                | {"logprobs": True, "top_logprobs": 20}
            )
            request = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(raw)}\r\n\r\n{raw}"
            )
            await asyncio.get_running_loop().sock_sendall(client, request.encode())
            await eventually(lambda: served.router.num_deltas > 1000)
            # they share a stream from the router, and nobody waits for the one that does not read
            assert (await answer(served.url, CHAT))[0] == 200
            await eventually(lambda: served.core.meters.stalls == 1)
            await eventually(lambda: len(served.router.cancelled) == 1)
            assert served.router.num_deltas < 6_000, "of 40,000"
            client.close()

    run(scenario())


def test_limits_come_before_parsing(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            served.core.http = HttpLimits(max_body_bytes=1000)
            status, _, body = await answer(served.url, b"x" * 1001)
            assert status == 413 and json.loads(body)["error"]["code"] == "request_too_large"
            status, _, body = await answer(served.url, b"{" * 900)
            assert status == 400 and json.loads(body)["error"]["param"] == "body"
            served.core.http = HttpLimits(max_active=0)
            status, headers, body = await answer(served.url, CHAT)
            assert status == 429 and headers["retry-after"] == "1"

    run(scenario())


def test_the_routers_refusal_keeps_its_time(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            queue = CHAT | {"messages": [{"role": "user", "content": "queue"}]}
            status, headers, body = await answer(served.url, queue)
            assert (status, headers["retry-after"], headers["retry-after-ms"]) == (429, "4", "3200")
            assert json.loads(body)["error"]["type"] == "rate_limit_error"
            assert headers["x-request-id"].startswith("chatcmpl-")
            streamed, _, _ = await answer(served.url, queue | {"stream": True})
            assert streamed == 429

    run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/DeepSeek-Reasoner", 200),
        ("GET", "/models", 200),
        ("GET", "/beta/models", 200),
        ("GET", "/health", 200),
        ("GET", "/ready", 200),
        ("GET", "/version", 200),
        ("GET", "/metrics", 200),
        ("GET", "/tokenizer_info", 200),
        ("GET", "/user/balance", 200),
    ],
)
def test_paths(tmp_path, method, path, status):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            found, _, body = await answer(served.url, b"", path=path, method=method)
            assert found == status
            if status >= 400:
                error = json.loads(body)["error"]
                assert set(error) - {"doc"} == {"message", "type", "param", "code"} and error["message"]

    run(scenario())


def test_the_tokenizer_over_http(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            text = "größe 🐳 the thing"
            _, _, body = await answer(served.url, {"prompt": text, "return_token_strs": True}, path="/tokenize")
            told = json.loads(body)
            assert told["tokens"] == TOKENIZER.encode(text) and told["count"] == len(told["tokens"])
            _, _, body = await answer(served.url, {"tokens": told["tokens"]}, path="/v1/detokenize")
            assert json.loads(body) == {"prompt": text}
            _, _, body = await answer(served.url, {"messages": CHAT["messages"]}, path="/tokenize")
            assert "<｜User｜>hi" in TOKENIZER.decode(json.loads(body)["tokens"])
            status, _, body = await answer(served.url, {"tokens": [1, -1]}, path="/detokenize")
            assert status == 400 and json.loads(body)["error"]["param"] == "tokens[1]"

    run(scenario())


def test_a_head_is_bounded():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def scenario():
        server = HttpServer(application, "127.0.0.1:0", drain_timeout_s=1.0)
        address = await server.start()
        host, port = address.split(":")
        try:
            for part in (
                b"GET /" + b"a" * (2 * MAX_HEAD_BYTES),
                b"GET / HTTP/1.1\r\nx: " + b"a" * (2 * MAX_HEAD_BYTES),
            ):
                reader, writer = await asyncio.open_connection(host, int(port))
                for start in range(0, len(part), 16_384):
                    writer.write(part[start : start + 16_384])
                    await asyncio.sleep(0)
                writer.write(b"a" * 1000)
                assert (await reader.readline()).startswith(b"HTTP/1.1 431")
                writer.close()
            headers = b"".join(b"x-%d: 1\r\n" % number for number in range(300))
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n" + headers + b"\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 431")
            writer.close()
            status, _, _ = await answer(f"http://{address}", b"{}" * 200_000)
            assert status == 200
        finally:
            await server.stop()

    run(scenario())


def test_a_body_is_no_part_of_the_next_head():
    async def application(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def scenario():
        server = HttpServer(application, "127.0.0.1:0", drain_timeout_s=1.0)
        host, port = (await server.start()).split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            for _ in range(3):
                size = 4 * MAX_HEAD_BYTES
                writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
                for _ in range(16):
                    writer.write(b"a" * (size // 16))
                    await writer.drain()
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
                await asyncio.sleep(0)
        finally:
            writer.close()
            await server.stop()

    run(scenario())
