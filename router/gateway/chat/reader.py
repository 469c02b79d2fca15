"""POST /v1/chat/completions: from body to ask and shape."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from baleen.errors import InvalidRequest
from router.gateway.ask import Ask
from router.gateway.chat.answer import ChatShape, chunk_options
from router.gateway.chat.request import read_ask
from router.gateway.dialect import Gateway
from router.gateway.names import new_id


async def read_chat(body: Mapping[str, Any], gateway: Gateway) -> tuple[Ask, ChatShape, bool]:
    """See dialect.Reader."""
    stream = bool(body.get("stream"))
    if body.get("stream_options") is not None and not stream:
        raise InvalidRequest("stream_options should be set along with stream = true", field="stream_options")
    ask = await read_ask(body, gateway.engine, gateway.names, gateway.limits, max_context=gateway.max_context)
    shape = ChatShape(
        ask,
        gateway.engine.tokenizer,
        answer_id=new_id("chatcmpl-"),
        created=int(time.time()),
        fingerprint=gateway.fingerprint,
        options=chunk_options(body),
        stream=stream,
    )
    return ask, shape, stream
