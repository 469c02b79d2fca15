"""docs/errors: a page for each of the likeliest mistakes of clients, which the gateway serves and errors point to.

usage: python -m router.gateway.error_pages FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

PREFIX = "/errors/"
"""Where a gateway serves them."""

_INVALID = "invalid_request_error"
_HELLO = [{"role": "user", "content": "Hello"}]

Caller = Literal["good", "wrong", "poor", "used up"]


def _chat(**fields: Any) -> dict[str, Any]:
    """The body of a call."""
    return {"model": "baleen", "messages": _HELLO, **fields}


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPage:
    """One page. caller: whose key the example's call has. body: of its call; says: of the answer, its error object.

    The example is of a gateway whose model is called `baleen` and has a context of 4,096 tokens.
    """

    name: str
    title: str
    says: Mapping[str, Any]
    why: str
    do: str
    status: int = 400
    caller: Caller = "good"
    method: str = "POST"
    path: str = "/v1/chat/completions"
    body: Mapping[str, Any] = field(default_factory=_chat)

    def text(self) -> str:
        """The page, in Markdown."""
        call = [f"curl -X {self.method} $BALEEN_URL{self.path}", '-H "Authorization: Bearer $KEY"']
        if self.method == "POST":
            call += ['-H "Content-Type: application/json"', f"-d '{json.dumps(self.body, ensure_ascii=False)}'"]
        says = json.dumps({"error": {**self.says, "doc": PREFIX + self.name}}, ensure_ascii=False)
        return (
            f"# {self.title}\n\nHTTP {self.status}.\n\n```sh\n{_lines(call)}\n```\n\nsays\n\n```json\n{says}\n```\n\n"
            f"## Why\n\n{self.why}\n\n## What to do\n\n{self.do}\n"
        )


def _lines(parts: Sequence[str]) -> str:
    return " \\\n  ".join(parts)


def _says(message: str, param: str | None, code: str = _INVALID, kind: str = _INVALID) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


_CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bergen"}'}}

PAGES: tuple[ErrorPage, ...] = (
    ErrorPage(
        name="api-key",
        title="The API key is not good",
        status=401,
        caller="wrong",
        says=_says("The API key is not valid.", None, "invalid_api_key", "authentication_error"),
        why="The call shows no key, a key that this gateway does not know, one that was revoked or has expired, or "
        "several keys. Which of them it is, beside none, several and expired, is not told. Keys are of one machine's "
        "gateways: those of another cluster are unknown here.",
        do="- Send `Authorization: Bearer KEY` or `x-api-key: KEY`, one of them, never in the address.\n"
        "- Look for spaces, quotes and line ends that were copied with the key, and for a client that sends another "
        "variable of the environment (`OPENAI_API_KEY`, `DEEPSEEK_API_KEY`, `ANTHROPIC_API_KEY`).\n"
        "- `baleen keys list` shows the first part of every key, and whether it is revoked or expired; "
        "`baleen keys create --tenant NAME` makes a new one.",
    ),
    ErrorPage(
        name="balance",
        title="The balance does not pay for the request",
        status=402,
        caller="poor",
        says=_says("Insufficient Balance", None, "invalid_request_error", "unknown_error"),
        why="What is left on the key, less what its running requests may still cost, must pay for the prompt and the "
        "longest answer that the request allows. A balance above 0 can be too little for a large `max_tokens`.",
        do="- Ask for what you need: a smaller `max_tokens` reserves less.\n"
        "- `GET /user/balance` tells what is left, `GET /v1/usage` what was used, `GET /v1/prices` what it costs.\n"
        "- `baleen keys credit KEY_ID AMOUNT` adds to it.",
    ),
    ErrorPage(
        name="rate-limit",
        title="Too much at once",
        status=429,
        caller="used up",
        says=_says(
            "Rate limit reached: 1 requests per minute; this request needs 1, 0 are left.",
            None,
            "rate_limit_exceeded",
            "rate_limit_error",
        ),
        why="A limit of the key is used up: requests or tokens per minute, or requests at the same time. Tokens are "
        "counted with the longest answer that the request allows; what it did not use comes back at its end. Without "
        "such words in the message, the cluster itself has no room.",
        do="- Wait for as long as `retry-after` (or `retry-after-ms`) says; the SDKs of OpenAI and Anthropic do so.\n"
        "- `x-ratelimit-remaining-requests` and `-tokens` of every answer tell what is left.\n"
        "- Send fewer requests at once, or a smaller `max_tokens`; `baleen keys create` makes keys with other limits.",
    ),
    ErrorPage(
        name="model-name",
        title="No model has this name",
        body=_chat(model="gpt-4o"),
        says=_says(
            "The supported API model names are baleen, deepseek-v3.2, deepseek-v3.2-exp, DeepSeek-V3.2-Exp-thinking, "
            "DeepSeek-V3.2-Exp-nothinking, deepseek-chat, deepseek-reasoner, but you passed gpt-4o.",
            "model",
        ),
        why="`model` is absent or none of the names in the message. One model is served, under all of them.",
        do="- Take a name of `GET /v1/models`; upper and lower case are the same.\n"
        "- Clients that choose a model of their own (for titles, summaries or small tasks) need that setting, too.\n"
        "- Under `/anthropic` every other name means `deepseek-chat`.",
    ),
    ErrorPage(
        name="too-long",
        title="Prompt and answer are longer than the context",
        body=_chat(max_tokens=4096),
        says=_says(
            "the prompt has 9 tokens and max_tokens is 4096, the model's context is 4096",
            "messages",
            "context_length_exceeded",
        ),
        why="The tokens of the prompt, tools and schemas included, and `max_tokens` together must fit the model's "
        "context, which the message names. Nothing is cut off in silence.",
        do="- Leave out old messages or parts of documents, or ask for a smaller `max_tokens`; without one, the answer "
        "may take what is left.\n"
        "- `POST /tokenize` with the same messages counts them; `GET /v1/models` has the context as `max_model_len`.",
    ),
    ErrorPage(
        name="max-tokens",
        title="max_tokens is above the limit",
        body=_chat(max_tokens=100000),
        says=_says(
            "Invalid max_tokens value, the valid range of max_tokens is [1, 65536]",
            "max_tokens",
        ),
        why="An answer may have at most `gateway.max_output_tokens` tokens, thinking included.",
        do="- Ask for no more than the message allows (`max_output_tokens` of `GET /v1/models`).\n"
        "- Whoever runs the cluster can raise the limit in the cluster file.",
    ),
    ErrorPage(
        name="wrong-field",
        title="A field is wrong",
        body=_chat(temperature="0.7"),
        says=_says("temperature is str, must be a number", "temperature"),
        why="A field has another type than it must have, or a value out of its range; or the body is no JSON, too deep "
        "or too large. `param` names the field, with its place in arrays. Fields that are not known are ignored, so a "
        "name that is spelled wrong is no error.",
        do="- Compare the field with its row in docs/api.md.\n"
        "- Numbers are numbers: clients that read settings from the environment often send them as text.\n"
        "- Pictures, sound and files are refused: the model reads text.",
    ),
    ErrorPage(
        name="tool-results",
        title="Calls of tools and their results do not belong together",
        body=_chat(messages=[*_HELLO, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, *_HELLO]),
        says=_says(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            "'tool_call_id'. (insufficient tool messages following tool_calls message)",
            "messages[1].tool_calls",
        ),
        why="After an answer that called tools, the next messages must be one of role `tool` for each call, with its "
        "`tool_call_id`, before anything else is said; and no such message may stand anywhere else.",
        do="- Send back the whole message of the assistant, as it came, and a result for every call: a failed tool's "
        "result is the text of its failure.\n"
        "- A conversation that was cut to fit must not be cut between calls and results.\n"
        "- With `gateway.missing_reasoning: reject`, `reasoning_content` of such a message must come back, too.",
    ),
    ErrorPage(
        name="unknown-path",
        title="There is no such path",
        status=404,
        path="/v1/v1/chat/completions",
        says=_says(
            "Unknown request URL: POST /v1/v1/chat/completions. Please check the URL for typos.", None, "not_found"
        ),
        why="Most often the base URL of a client is wrong: it stands for different things in different clients.",
        do="- OpenAI's clients: the base URL ends in `/v1`, or in nothing; clients add `/chat/completions`.\n"
        "- Anthropic's: it ends in nothing or in `/anthropic`; clients add `/v1/messages`.\n"
        "- Embeddings, pictures, sound, files, batches and stored responses are not served; docs/api.md lists what is.",
    ),
    ErrorPage(
        name="not-ready",
        title="Nobody can take the request now",
        status=503,
        says=_says("no rank serves the model yet", None, "service_unavailable", "server_error"),
        why="No router answers, no rank has started yet, or all of them were lost or are leaving. The request was not "
        "begun and costs nothing.",
        do="- Try again after `retry-after`; the SDKs do so by themselves, twice.\n"
        "- `GET /ready` says when requests can be taken. `baleen status` and the page `/status` tell what the cluster "
        "lacks; while a checkpoint is loaded, that is normal.",
    ),
)


def page_paths() -> dict[str, str]:
    """Path and text of every page, and of their list."""
    rows = "".join(f"- [{page.title}]({page.name}.md): HTTP {page.status}\n" for page in PAGES)
    contents = (
        "# The ten likeliest errors\n\nMade by `make docs`. A gateway serves these pages under `/errors/NAME`; errors "
        "in OpenAI's form name theirs as `doc`,\nand every error does in its header `link`. All other errors: "
        "docs/api.md.\n\n"
    )
    return {PREFIX + "README": contents + rows, **{PREFIX + page.name: page.text() for page in PAGES}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(prog="python -m router.gateway.error_pages", description="Write docs/errors.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(exist_ok=True)
    for path, text in page_paths().items():
        (folder / f"{path.removeprefix(PREFIX)}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
