"""What clients send to a gateway over real HTTP does no harm: each test names the advisories that it is about."""

import asyncio
import json

from baleen.text.tokenizer import Tokenizer
from tests.support.gateway_server import scenario

CHAT = {"model": "baleen", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


def test_numbers_and_sizes_without_bounds_are_refused(tmp_path):
    """CVE-2026-34756 (vLLM: huge n), CVE-2025-48956 (vLLM: huge header), CVE-2025-23310 (Triton: chunked bodies)."""

    async def talk(gateway):
        key = gateway.add_key()

        async def status(body, path="/v1/chat/completions"):
            return (await gateway.call("POST", path, body, key=key)).status

        for field in ("n", "max_tokens", "top_logprobs", "seed", "logprobs", "top_k", "min_tokens"):
            assert await status(CHAT | {field: 10**30}) == 400, field
        assert await status(CHAT | {"n": 10**6}) == 400
        assert await status(CHAT | {"stop": ["x"] * 1000}) == 400
        assert await status(CHAT | {"logit_bias": {str(one): 1 for one in range(100_000)}}) == 400
        assert await status(b"[" * 1_000_000) == 400
        assert await status(b'{"a":' * 1000 + b"1" + b"}" * 1000) == 400
        assert await status(b'{"model": "baleen", "messages": [], "seed": ' + b"9" * 100_000 + b"}") == 400
        assert await status(b'{"temperature": NaN}') == 400
        assert await status(b"\xff\xfe{}") == 400
        # 0: it closed while the rest was still being sent
        assert await status(b" " * 3_000_000) in (413, 0)
        assert await status(b" " * 3_000_000, "/tokenize") in (413, 0)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n".encode()
        # chunks count towards the limit, and so does a length that is only claimed
        chunks = b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 40
        answer = await gateway.raw(head + b"Connection: close\r\n" + chunks)
        assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0]
        claimed = b"Connection: close\r\nContent-Length: 99999999999999999999\r\n\r\n"
        answer = await gateway.raw(head + claimed)
        assert answer == b"" or answer.split(b"\r\n")[0].split()[1] in (b"400", b"413")
        huge = head + b"X-Filler: " + b"x" * (1 << 20) + b"\r\nConnection: close\r\n\r\n"
        answer = await gateway.raw(huge)
        assert answer == b"" or answer.split(b"\r\n")[0].split()[1] in (b"400", b"415", b"431"), answer[:80]
        # and it goes on to serve
        assert await status(CHAT) == 200

    scenario(tmp_path, talk, max_body_mib=2)


def test_templates_patterns_and_schemas_of_clients_do_no_harm(tmp_path):
    """CVE-2025-61620, CVE-2025-62426 (vLLM: templates of clients), CVE-2025-48942 to 48944 (schemas and patterns).

    And CVE-2025-48887 (vLLM: a pattern of the tool parser) with text that its like would take for ever.
    """
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    bodies = [
        CHAT | {"chat_template": "{{ ''.__class__.__mro__ }}{% for x in range(10**9) %}{% endfor %}"},
        CHAT | {"chat_template_kwargs": {"tokenize": True, "chat_template": "{{ 1/0 }}", "thinking": [1]}},
        CHAT
        | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "something"}}}},
        CHAT | {"response_format": {"type": "regex", "regex": "(a+)+$"}},
        CHAT | {"tools": [{"type": "function", "function": {"name": "a" * 10_000}}]},
        CHAT | {"tools": [tool | {"function": {"name": "f", "parameters": {"type": ["\u0000"], "pattern": "("}}}]},
        CHAT | {"tools": [tool] * 5000},
        CHAT | {"tools": "x", "tool_choice": {"type": "function"}},
        CHAT | {"messages": [{"role": "user", "content": '<｜DSML｜invoke name="' * 2000}], "tools": [tool]},
        CHAT | {"guided_regex": "(" * 10_000},
    ]

    async def talk(gateway):
        key = gateway.add_key()
        for body in bodies:
            reply = await gateway.call("POST", "/v1/chat/completions", body, key=key)
            assert reply.status in (200, 400), (body, reply.body)
        assert (await gateway.call("POST", "/v1/chat/completions", CHAT, key=key)).status == 200

    scenario(tmp_path, talk)


def test_tensors_of_clients_are_never_read(tmp_path):
    """CVE-2025-62164 and CVE-2025-62372 (vLLM: prompts as pickled tensors and of made-up shapes)."""
    pickled = "gASVHAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAR0cnVllIWUUpQu"

    async def talk(gateway):
        key = gateway.add_key()
        for extra in ({"prompt_embeds": pickled}, {"prompt_embeds": [[0.5] * 8] * 4}, {"input_embeds": pickled}):
            # without a prompt there is none, and beside one it says nothing
            body = {"model": "baleen", "max_tokens": 2, **extra}
            refused = await gateway.call("POST", "/v1/completions", body, key=key)
            assert (refused.status, refused.json()["error"]["param"]) == (400, "prompt")
            reply = await gateway.call("POST", "/v1/completions", body | {"prompt": "Hello"}, key=key)
            assert reply.status == 200
            plain = await gateway.call(
                "POST", "/v1/completions", {"model": "baleen", "max_tokens": 2, "prompt": "Hello"}, key=key
            )
            submits = gateway.ranks[0].submits
            assert plain.status == 200 and submits[-1].token_ids == submits[-2].token_ids

    scenario(tmp_path, talk)


def test_a_text_is_tokenised_once_however_many_tags_it_has(tmp_path, monkeypatch):
    """CVE-2025-46560 (vLLM: text was gone through anew for each of its placeholders)."""
    seen = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: seen.append(len(text)) or encode(self, text))
    tags = "<｜User｜></think><｜DSML｜<|audio_1|><image>" * 5000

    async def talk(gateway):
        key = gateway.add_key()
        seen.clear()
        body = CHAT | {"messages": [{"role": "user", "content": tags}]}
        assert (await gateway.call("POST", "/v1/chat/completions", body, key=key)).status in (200, 400)
        assert len(tags) <= sum(seen) < 1.1 * len(tags) and len(seen) == 1

    scenario(tmp_path, talk)


def test_only_http_1_is_spoken(tmp_path):
    """CVE-2023-44487 and CVE-2025-8671 (streams of HTTP/2 that are reset): there are none; nor is there an upgrade."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    upgrade = (
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
    )

    async def talk(gateway):
        answer = await gateway.raw(preface)
        assert answer == b"" or answer.split()[1] == b"400"
        assert b" 101 " not in (await gateway.raw(upgrade))

    scenario(tmp_path, talk)


def test_templates_of_a_checkpoint_are_not_run(tmp_path):
    """CVE-2026-5760 (SGLang: a template of the model was code), CVE-2025-66448 (vLLM: so was auto_map)."""
    model = tmp_path / "model"
    model.mkdir()
    trap = "{{ cycler.__init__.__globals__.os.system('touch ran') }}{% for x in range(10**9) %}{% endfor %}"
    (model / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": trap, "auto_map": {"AutoTokenizer": "x.y"}})
    )
    (model / "chat_template.jinja").write_text(trap)
    (model / "x.py").write_text("raise SystemExit('code of a checkpoint ran')")

    async def talk(gateway):
        assert (await gateway.call("POST", "/v1/chat/completions", CHAT, key=gateway.add_key())).status == 200

    scenario(tmp_path, talk)
    assert not list(tmp_path.rglob("ran"))


def test_nothing_is_fetched_for_a_client(tmp_path):
    """CVE-2025-6242, CVE-2026-24779 (vLLM: media addresses) and CVE-2026-0599 (TGI: addresses in the text)."""

    async def talk(gateway):
        visits = []

        async def visited(reader, writer):
            visits.append(1)
            writer.close()

        server = await asyncio.start_server(visited, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.png"
        key = gateway.add_key()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": f"![x]({url})"}]
        for content in (parts, parts[1:], f"![x]({url}) <img src='{url}'>"):
            body = CHAT | {
                "messages": [{"role": "user", "content": content}],
                "user": url,
                "metadata": {"webhook": url},
            }
            reply = await gateway.call("POST", "/v1/chat/completions", body, key=key)
            assert reply.status == (400 if content is parts else 200)
        server.close()
        assert visits == []

    scenario(tmp_path, talk)


def test_errors_tell_nothing_of_the_inside(tmp_path):
    """CVE-2025-23319 (Triton: an error told a name of shared memory, which led to code)."""

    async def talk(gateway):
        key = gateway.add_key()

        async def broken(*arguments, **named):
            raise RuntimeError("secret of /dev/shm/inside")

        gateway.core.engine.encode = broken
        for path, body in (("/v1/chat/completions", CHAT), ("/tokenize", {"prompt": "x"}), ("/v1/messages", CHAT)):
            reply = await gateway.call("POST", path, body, key=key)
            assert reply.status == 500
            said = reply.body.decode()
            assert "secret" not in said and "Traceback" not in said and "/" not in json.loads(said)["error"]["message"]
        assert all("secret" not in line for line in gateway.log)

    scenario(tmp_path, talk)


def test_what_clients_say_stands_in_no_log_and_no_metric(tmp_path):
    """Prompts and keys at rest (ops 3.2): a word that is sent is looked for where it must not be."""
    word = "xyzzycanary"

    async def talk(gateway):
        key = gateway.add_key(is_operator=True)
        forged = f'{word}\\r\\n{{"level":"error"}}'
        body = CHAT | {"messages": [{"role": "user", "content": word}], "user": word, "stop": [word]}
        headers = [("X-Request-Id", forged), ("User-Agent", forged), ("traceparent", forged)]
        for path in ("/v1/chat/completions", f"/v1/{word}", f"/v1/models/{word}"):
            await gateway.call("POST", path, body, key=key, headers=headers)
            await gateway.call("GET", f"{path}?q={word}", key=key, headers=headers)
        await gateway.call("POST", "/v1/chat/completions", body | {word: word, "temperature": word}, key=key)
        metrics = (await gateway.call("GET", "/metrics", key=key)).body.decode()
        assert "baleen_gateway_ledger_entries_total" in metrics
        for text in (*gateway.log, metrics):
            assert word not in text and key not in text
        held = b"".join(one.read_bytes() for one in gateway.database.parent.glob("accounts.db*") if one.is_file())
        assert word.encode() not in held and key[24:].encode() not in held

    scenario(tmp_path, talk)
