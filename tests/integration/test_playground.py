"""The pages in a headless Chromium, against an API that answers as a gateway does."""

import asyncio
import contextlib
import json
import threading

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from router.gateway.accounts.money import PICO
from router.gateway.pages import PATHS, POLICY, page_routes
from tests.support.browser import CHROMIUM, browser
from tests.support.gateway_server import gateway_server

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: make debian")

USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 5,
    "total_tokens": 25,
    "prompt_cache_hit_tokens": 8,
    "prompt_cache_miss_tokens": 12,
}


def chunk(delta, finish=None, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "id-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}


class Api:
    """What the pages call. asked: bodies of chats."""

    def __init__(self):
        self.asked = []
        self.gone = threading.Event()

    async def chat(self, request):
        body = await request.json()
        self.asked.append(body)
        last = body["messages"][-1]["content"]
        if last == "fail":
            error = {"message": "Insufficient Balance", "type": "unknown_error", "param": None, "code": "x"}
            error["doc"] = "/errors/balance"
            return JSONResponse({"error": error}, status_code=402)
        return StreamingResponse(self._stream(body, last), media_type="text/event-stream")

    async def _stream(self, body, last):
        try:
            yield ": keep-alive\n\n"
            if last == "forever":
                while True:
                    yield f"data: {json.dumps(chunk({'content': 'more '}))}\n\n"
                    await asyncio.sleep(0.02)
            if body["thinking"]["type"] == "enabled":
                yield f"data: {json.dumps(chunk({'role': 'assistant', 'reasoning_content': 'Let me think.'}))}\n\n"
            if body.get("tools") and last != "It rains.":
                call = {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": ""},
                }
                yield f"data: {json.dumps(chunk({'tool_calls': [call]}))}\n\n"
                for part in ('{"city"', ': "Bergen"}'):
                    piece = {"index": 0, "function": {"arguments": part}}
                    yield f"data: {json.dumps(chunk({'tool_calls': [piece]}))}\n\n"
                yield f"data: {json.dumps(chunk({}, 'tool_calls', usage=USAGE))}\n\n"
            elif "response_format" in body:
                for part in ('{"answer"', ':"<b>', 'ja"}'):
                    yield f"data: {json.dumps(chunk({'content': part}))}\n\n"
                yield f"data: {json.dumps(chunk({'content': ''}, 'stop', usage=USAGE))}\n\n"
            else:
                for part in ("Hello <b>", "wörld</b>", " <script>document.title='x'</script>"):
                    yield f"data: {json.dumps(chunk({'content': part}))}\r\n\r\n"
                    await asyncio.sleep(0.02)
                yield f"data: {json.dumps(chunk({'content': ''}, 'stop'))}\n\n"
                yield f"data: {json.dumps({'id': 'id-1', 'choices': [], 'usage': USAGE})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.gone.set()

    async def models(self, request):
        return JSONResponse({"object": "list", "data": [{"id": "baleen-small"}, {"id": "deepseek-chat"}]})

    async def prices(self, request):
        price = {"model": "baleen-small", "input_hit": "0.028", "input_miss": "0.28", "output": "0.42"}
        return JSONResponse({"object": "list", "currency": "USD", "data": [price]})

    async def served(self, request):
        ranks = [{"role": "prefill", "rank": "p/p-0/0"}, {"role": "decode", "rank": "d/d-0/1"}]
        return JSONResponse({"id": request.path_params["id"], "ranks": ranks})

    async def cluster(self, request):
        numbers = ("num_ranks", "num_active", "num_queued", "queued_tokens", "num_admitted", "num_shed")
        counts = {"num_running": 3, "num_waiting": 0, "total_blocks": 256, "free_blocks": 192}
        ranks = [
            {"pool": "decode", "group": "decode-0", "rank": place, "role": "decode", "draining": False} | counts
            for place in range(2)
        ]
        router = {"address": "127.0.0.1:9000", "policy": "cost", "leaving": False, "ranks": ranks}
        router |= {**dict.fromkeys(numbers, 1), "prompt_tokens": 400, "cached_prompt_tokens": 100}
        silent = {"address": "127.0.0.1:9001", "error": "gives no answer (UNAVAILABLE)"}
        return JSONResponse({"object": "cluster", "routers": [silent, router]})

    def routes(self):
        return [
            *page_routes(),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/prices", self.prices),
            Route("/v1/requests/{id}", self.served),
            Route("/v1/cluster", self.cluster),
        ]


@pytest.fixture(scope="module")
def served():
    api = Api()
    config = uvicorn.Config(Starlette(routes=api.routes()), port=0, log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def started(sockets=None):
        await startup(sockets)
        ready.set()

    server.startup = started
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ready.wait(30)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", api
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def page():
    with browser() as page:
        yield page


def say(page, text):
    page.fill("#prompt", text)
    page.run("document.getElementById('composer').requestSubmit()")


def settled(page):
    page.until("document.getElementById('stop').hidden && document.querySelectorAll('.message.assistant').length")


@pytest.mark.slow
def test_a_chat_streams_thinks_and_tells_what_it_took(served, page, tmp_path):
    url, api = served
    page.open(url)
    page.until("document.getElementById('model').options.length === 2")
    page.fill("#system", "Be kind.")
    page.click("#thinking")
    say(page, "Who is there?")
    page.until("document.querySelector('.assistant .figures').innerText.includes('ranks')")
    assert page.text(".message.assistant .text") == "Hello <b>wörld</b> <script>document.title='x'</script>"
    assert "Let me think." in page.text(".assistant .reasoning") and page.run("document.title") == "baleen"
    figures = page.text(".assistant .figures")
    # 8 x 0.028 + 12 x 0.28 + 5 x 0.42, by a million
    assert "prompt 20, of it 8 cached" in figures and "price 0.000005684 USD" in figures
    assert "first token" in figures and "tokens/s" in figures and "ranks prefill p/p-0/0, decode d/d-0/1" in figures
    body = api.asked[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (body["model"], body["stream"], body["thinking"]) == ("baleen-small", True, {"type": "enabled"})
    page.picture(tmp_path / "desktop.png")
    assert page.problems == []


@pytest.mark.slow
def test_tools_are_called_and_their_results_sent_with_the_reasoning(served, page):
    url, api = served
    page.open(url)
    page.click("#use_tools")
    page.click("#thinking")
    say(page, "Weather?")
    page.until("document.querySelector('.call + textarea')")
    assert page.text(".call") == 'get_weather({"city": "Bergen"})'
    page.fill(".call + textarea", "It rains.")
    page.click(".message.assistant button")
    page.until("document.querySelectorAll('.message.assistant').length === 2")
    settled(page)
    asked = api.asked[-1]["messages"]
    assert asked[-1] == {"role": "tool", "tool_call_id": "call_1", "content": "It rains."}
    assert asked[-2]["reasoning_content"] == "Let me think." and asked[-2]["tool_calls"][0]["id"] == "call_1"


@pytest.mark.slow
def test_stop_reaches_the_server_and_errors_are_read_out(served, page):
    url, api = served
    page.open(url)
    api.gone.clear()
    say(page, "forever")
    page.until("document.querySelector('.message.assistant .text')?.innerText.includes('more')")
    page.click("#stop")
    settled(page)
    assert api.gone.wait(30) and "Stopped." in page.text(".message.assistant")
    page.click("#clear")
    say(page, "fail")
    page.until("document.querySelector('.error')")
    assert page.text(".error") == "Insufficient Balance What to do"
    assert page.run("document.querySelector('.error a').getAttribute('href')") == "/errors/balance"


@pytest.mark.slow
def test_an_answer_in_json_can_be_read(served, page, tmp_path):
    url, api = served
    page.open(url)
    page.fill("#format", "json_schema")
    assert page.run("!document.getElementById('schema_box').hidden")
    say(page, "JSON please")
    page.until("document.querySelector('.assistant .figures').innerText.includes('answer')")
    settled(page)
    assert page.run("document.querySelector('.assistant .text').textContent") == '{\n  "answer": "<b>ja"\n}'
    assert api.asked[-1]["response_format"]["json_schema"]["schema"]["required"] == ["answer"]
    page.picture(tmp_path / "json.png")
    page.fill("#schema", "{")
    say(page, "again")
    page.until("document.querySelector('.error')")
    assert "The schema cannot be read" in page.text(".error")


@pytest.mark.slow
def test_while_it_streams_a_caret_and_the_first_figures_are_there(served, page, tmp_path):
    url, _ = served
    page.open(url)
    say(page, "forever")
    page.until("document.querySelector('.assistant .figures')?.innerText.includes('first token')")
    assert page.run("document.querySelectorAll('.message.pending').length") == 1
    page.picture(tmp_path / "streaming.png")
    page.click("#stop")
    settled(page)
    assert page.run("document.querySelectorAll('.message.pending').length") == 0


@pytest.mark.slow
def test_in_the_dark_the_text_is_light(served, page, tmp_path):
    url, _ = served
    try:
        page.prefer_dark(True)
        page.open(url)
        colours = "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor] })()"
        text, ground = ([int(one) for one in colour[4:-1].split(",")] for colour in page.run(colours))
        assert min(text) > 200 and max(ground) < 50
        page.picture(tmp_path / "dark.png")
    finally:
        page.prefer_dark(False)


@pytest.mark.slow
def test_the_request_can_be_copied_without_the_key(served, page):
    url, _ = served
    page.open(url)
    page.until("document.getElementById('model').options.length === 2")
    page.fill("#key", "sk-secret")
    page.fill("#prompt", 'It\'s "quoted"\nand $more')
    page.fill("#format", "json_schema")
    for kind, start in (("curl", "curl -N"), ("python", "import os"), ("javascript", "import OpenAI")):
        script = (
            f"import('/pages/snippets.js').then((module) => module.snippet({json.dumps(kind)}, location.origin, "
            "{model: 'm', stream: true, stop: null, thinking: {type: 'enabled'}, "
            "messages: [{role: 'user', content: document.getElementById('prompt').value}]}))"
        )
        text = page.run(script)
        assert text.startswith(start) and "sk-secret" not in text
        if kind == "python":
            compile(text, "snippet", "exec")
    page.run("sessionStorage.clear()")


@pytest.mark.slow
def test_a_phone_has_it_all_on_its_screen(served, page, tmp_path):
    url, _ = served
    page.open(url, width=390, height=780, scale=2, mobile=True)
    say(page, "Hello")
    settled(page)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    page.picture(tmp_path / "phone.png")
    assert page.run("document.querySelector('header').clientHeight") < 60
    page.click("#toggle")
    assert page.text("#toggle") == "Close"
    assert page.run("getComputedStyle(document.getElementById('settings')).display") == "block"
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    page.picture(tmp_path / "phone-settings.png")


@pytest.mark.slow
def test_the_status_page_is_live(served, page, tmp_path):
    url, _ = served
    page.open(f"{url}/status")
    page.until("document.querySelectorAll('#ranks tr').length === 3")
    assert "gives no answer" in page.text("#routers") and "25 %" in page.text("#routers")
    # of a group the sum of its ranks, and of all the sums
    assert page.text("#groups tr:last-child").split()[:7] == ["decode", "decode-0", "decode", "ready", "2", "6", "0"]
    sums = " ".join(page.text("#sums").split())
    assert sums == "Running 1 Queued 1 Ranks 2 Blocks in use 25 % Prompt tokens cached 25 %"
    assert "decode-0" in page.text("#ranks")
    page.picture(tmp_path / "status.png")
    assert page.problems == []
    page.open(f"{url}/status", width=390, height=780, scale=2, mobile=True)
    page.until("document.querySelectorAll('#ranks tr').length === 3")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert "Waiting" in page.run("document.querySelector('#ranks td:nth-child(7)').dataset.name")
    page.picture(tmp_path / "phone-status.png")


@contextlib.contextmanager
def real_gateway(folder):
    """A gateway that asks for keys, in an event loop of its own; gives it and its address."""
    loop, up, told = asyncio.new_event_loop(), threading.Event(), []

    async def serve():
        leave = asyncio.Event()
        async with gateway_server(folder) as gateway:
            told.append((gateway, leave))
            up.set()
            await leave.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert up.wait(60)
        gateway, leave = told[0]
        yield gateway, f"http://127.0.0.1:{gateway.port}"
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join(60)
        loop.close()


@pytest.mark.slow
def test_a_real_gateway_lets_the_page_in_and_asks_it_for_a_key(page, tmp_path):
    with real_gateway(tmp_path) as (gateway, url):
        page.open(url)
        page.run("sessionStorage.clear()")
        page.until("document.getElementById('copied').innerText.includes('No API key')")
        page.fill("#key", gateway.add_key(is_operator=True, balance=PICO))
        page.until("document.getElementById('model').options.length > 5")
        page.fill("#max_tokens", "12")
        say(page, "Who is there?")
        page.until("document.querySelector('.assistant .figures').innerText.includes('ranks')")
        figures = page.text(".assistant .figures")
        assert "answer 12" in figures and "tokens/s" in figures
        spent = f"{gateway.accounts.meters.cost / PICO:.12f}".rstrip("0")
        assert f"price {spent} USD" in figures
        page.picture(tmp_path / "real.png")
        assert [problem for problem in page.problems if "401" not in problem] == []
        page.open(f"{url}/status")
        page.until("document.querySelectorAll('#ranks tr').length === 2")
        assert "serving" in page.text("#routers")
        page.run("sessionStorage.clear()")


def test_files_are_served_under_a_strict_policy_and_told_apart_by_a_tag():
    client = TestClient(Starlette(routes=page_routes()))
    for path in PATHS:
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-security-policy"] == POLICY
        assert client.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
        # nothing is fetched from elsewhere
        assert b"://" not in answer.content.replace(b"ws://", b"")
    assert "unsafe" not in POLICY and client.get("/pages/../auth.py").status_code == 404
