"""Instances asked over HTTP, as an OpenAI client would: messages, tools and schemas in, a message out."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from baleen.errors import BaleenError
from baleen.text.encoding_v32 import Message, ToolCall
from cluster.evaluation.instances import Instance
from cluster.evaluation.runner import MAX_TOKENS, REQUEST_TIMEOUT_S, Answer, Results

Json = dict[str, Any]


class OverHttp:
    """See runner.Way; at most `concurrency` requests at a time. base_url: with its /v1."""

    def __init__(self, base_url: str, *, key: str, model: str, concurrency: int) -> None:
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._model = model
        self._slots = asyncio.Semaphore(concurrency)

    async def ask(self, instance: Instance) -> Answer:
        """See runner.Way."""
        async with self._slots:
            choice = await asyncio.to_thread(self._post, body_of(instance, self._model))
        message = choice["message"]
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        got = Message(
            role="assistant",
            content=message.get("content") or "",
            reasoning=message.get("reasoning_content") or "",
            tool_calls=[ToolCall(call["name"], call["arguments"]) for call in calls],
        )
        return Answer(instance, json.dumps(message), got, choice["finish_reason"] in ("stop", "tool_calls"))

    async def perplexity(self, texts: Sequence[str], results: Results) -> None:
        """See runner.Way."""
        raise BaleenError("log-probabilities of single tokens are measured over gRPC: --address instead of --http")

    def _post(self, body: Json) -> Json:
        """The only choice of an answer."""
        request = urllib.request.Request(self._url, json.dumps(body).encode(), self._headers)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
                choice: Json = json.load(response)["choices"][0]
                return choice
        except urllib.error.HTTPError as error:
            raise BaleenError(
                f"{self._url} answers {error.code}: {error.read(500).decode(errors='replace')}"
            ) from error
        except (OSError, ValueError, LookupError) as error:
            raise BaleenError(f"{self._url} gives no answer: {error!r}") from error


def body_of(instance: Instance, model: str) -> Json:
    """What a client sends for an instance."""
    body: Json = {
        "model": model,
        "messages": [],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "thinking": {"type": "enabled" if instance.thinking else "disabled"},
    }
    ids: list[str] = []
    for message in instance.messages:
        as_sent: Json = {"role": message.role, "content": message.content}
        if message.reasoning:
            as_sent["reasoning_content"] = message.reasoning
        if message.tool_calls:
            ids = [f"call_{len(body['messages'])}_{place}" for place in range(len(message.tool_calls))]
            as_sent["tool_calls"] = [
                {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for name, call in zip(ids, message.tool_calls, strict=True)
            ]
        if message.role == "tool":
            as_sent["tool_call_id"] = ids.pop(0)
        if message.tools:
            body["tools"] = [{"type": "function", "function": dict(tool)} for tool in message.tools]
        if message.response_format is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": dict(message.response_format)},
            }
        body["messages"].append(as_sent)
    return body
