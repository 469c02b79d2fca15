"""What needs no rank: models, health, version, metrics, and the tokenizer. Errors are left to the application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from baleen import exposition
from baleen.errors import InvalidRequest
from baleen.text.tokenizer_files import BOS_TOKEN, EOS_TOKEN
from router.gateway.auth import CALLER, Caller
from router.gateway.bodies import read_object
from router.gateway.chat.reader import read_chat
from router.gateway.core import Core
from router.gateway.fields import MAX_TEXT, Field, check
from router.gateway.messages import reader as message_reader
from router.gateway.metrics import samples

Json = dict[str, Any]
Handler = Callable[[Core, Request], Awaitable[Response]]

TOKENIZE_FIELDS = (
    Field(name="model", kind="string", longest=256, effect="A name of GET /v1/models."),
    Field(name="prompt", kind="string", longest=MAX_TEXT, effect="The text; or messages, as of a chat."),
    Field(name="messages", kind="array", longest=10_000, effect="A chat, with tools and thinking as there."),
    Field(name="add_special_tokens", kind="boolean", effect="With a prompt: begin with the begin token (false)."),
    Field(name="return_token_strs", kind="boolean", effect="The text of each token, too."),
)
"""Fields of POST /tokenize; others are ignored."""

DETOKENIZE_FIELDS = (
    Field(name="model", kind="string", longest=256, effect="A name of GET /v1/models."),
    Field(name="tokens", kind="array", required=True, longest=1 << 20, effect="Token ids."),
)
"""Fields of POST /detokenize; others are ignored."""


def endpoint(core: Core, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """A handler of this gateway; its errors are left to the application."""

    async def serve(request: Request) -> Response:
        return await handler(core, request)

    return serve


async def health(core: Core, request: Request) -> Response:
    """The process lives."""
    return JSONResponse({"status": "ok"})


async def ready(core: Core, request: Request) -> Response:
    """A router answers, and a rank serves the model."""
    await core.engine.model()
    return JSONResponse({"status": "ready"})


async def version(core: Core, request: Request) -> Response:
    """Of this package."""
    return JSONResponse({"version": exposition.version_of_baleen()})


async def models(core: Core, request: Request) -> Response:
    """All names of the model."""
    await core.prepare()
    return JSONResponse({"object": "list", "data": [_model(core, model.name) for model in core.names.models]})


async def model(core: Core, request: Request) -> Response:
    """One name of the model."""
    await core.prepare()
    return JSONResponse(_model(core, core.names.listed(request.path_params["name"]).name))


def _model(core: Core, name: str) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": core.created,
        "owned_by": "baleen",
        "root": core.names.served,
        "parent": None,
        "max_model_len": core.max_context,
        "max_output_tokens": core.limits.max_output,
    }


async def metrics(core: Core, request: Request) -> Response:
    """In the text format of Prometheus, of all tenants together, and so for operators."""
    caller: Caller = request.scope[CALLER]
    caller.require_operator()
    registry = CollectorRegistry()
    registry.register(exposition.Samples("gateway", lambda: samples(core)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def tokenize(core: Core, request: Request) -> Response:
    """Token ids of a text or of a chat."""
    await core.prepare()
    body = await read_object(request.scope, request.receive, max_bytes=core.http.max_body_bytes)
    given = check(body, TOKENIZE_FIELDS)
    if "messages" in given:
        chat = {name: value for name, value in body.items() if name not in ("stream", "max_tokens")}
        ask, _, _ = await read_chat({"model": core.names.served, **chat}, core)
        token_ids = list(ask.prompt)
    elif "prompt" in given:
        if "model" in given:
            core.names.find(given["model"])
        text = (BOS_TOKEN if given.get("add_special_tokens") else "") + given["prompt"]
        token_ids = await core.engine.encode(text)
    else:
        raise InvalidRequest("prompt or messages is missing", field="prompt")
    answer: Json = {"count": len(token_ids), "max_model_len": core.max_context, "tokens": token_ids}
    tokenizer = core.engine.tokenizer
    strings = [tokenizer.token_bytes(one).decode(errors="replace") for one in token_ids]
    answer["token_strs"] = strings if given.get("return_token_strs") else None
    return JSONResponse(answer)


async def detokenize(core: Core, request: Request) -> Response:
    """The text of token ids."""
    body = await read_object(request.scope, request.receive, max_bytes=core.http.max_body_bytes)
    given = check(body, DETOKENIZE_FIELDS)
    if "model" in given:
        core.names.find(given["model"])
    token_ids = read_token_ids(given["tokens"], "tokens")
    return JSONResponse({"prompt": await asyncio.to_thread(core.engine.tokenizer.decode, token_ids)})


def read_token_ids(raw: list[Any], name: str) -> list[int]:
    """Token ids from JSON. Raises InvalidRequest that names the first that is none."""
    for place, one in enumerate(raw):
        if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < 1 << 31:
            raise InvalidRequest(f"{name}[{place}] must be a token id", field=f"{name}[{place}]")
    return raw


async def tokenizer_info(core: Core, request: Request) -> Response:
    """What clients that count tokens want to know."""
    await core.prepare()
    return JSONResponse(
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "vocab_size": core.engine.tokenizer.vocab_size,
            "bos_token": BOS_TOKEN,
            "eos_token": EOS_TOKEN,
            "pad_token": EOS_TOKEN,
            "add_bos_token": False,
            "add_eos_token": False,
            "chat_template": None,
            "model_max_length": core.max_context,
        }
    )


async def count_tokens(core: Core, request: Request) -> Response:
    """Tokens of a message, in Anthropic's dialect."""
    await core.prepare()
    body = await read_object(request.scope, request.receive, max_bytes=core.http.max_body_bytes)
    if request.scope["path"].startswith("/anthropic/"):
        body = dict(message_reader.known_model(body, core))
    return JSONResponse(await message_reader.count_tokens(body, core))
