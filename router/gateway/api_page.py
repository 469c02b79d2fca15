"""docs/api.md, made from the tables of fields that requests are checked against.

usage: python -m router.gateway.api_page FILE
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from baleen.constraint import MAX_CHARS
from baleen.text.lark import MAX_DEPTH as SCHEMA_DEPTH
from router.gateway.bodies import BODY_TIMEOUT_S, MAX_DEPTH
from router.gateway.chat.request import FIELDS as CHAT
from router.gateway.completions.request import FIELDS as COMPLETIONS
from router.gateway.endpoints import DETOKENIZE_FIELDS, TOKENIZE_FIELDS
from router.gateway.fields import Field
from router.gateway.http_server import MAX_HEAD_BYTES, MAX_HEADERS
from router.gateway.messages.request import COUNTED_FIELDS
from router.gateway.messages.request import FIELDS as MESSAGES
from router.gateway.models import ALIASES
from router.gateway.responses.request import FIELDS as RESPONSES
from router.gateway.streams import EACH_BYTES


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


TABLES: tuple[tuple[str, str, tuple[Field, ...]], ...] = (
    (
        "POST /v1/chat/completions",
        "Also without `/v1`, under `/beta` and `/beta/v1`.",
        CHAT,
    ),
    (
        "POST /v1/completions",
        "Also without `/v1`, under `/beta` and `/beta/v1`. `suffix` needs a model with tokens for gaps.\n\n"
        "With `echo` and `logprobs` the lists of `logprobs` begin with the tokens of the prompt, of which the first\n"
        "has null. A prompt that is a text begins with the model's own first token, which is no part of the text.\n"
        "Such a prompt is computed anew, with nothing from a cache.",
        COMPLETIONS,
    ),
    ("POST /v1/responses", "Also without `/v1`. Nothing is stored.", RESPONSES),
    (
        "POST /v1/messages",
        "Also under `/anthropic` and `/anthropic/v1`, where any other name of a model is `deepseek-chat`. Errors have "
        "Anthropic's form.",
        MESSAGES,
    ),
    ("POST /v1/messages/count_tokens", "Beside the one above.", COUNTED_FIELDS),
    ("POST /tokenize", "Also under `/v1`.", TOKENIZE_FIELDS),
    ("POST /detokenize", "Also under `/v1`.", DETOKENIZE_FIELDS),
)

_INTRODUCTION = f"""# The HTTP API

Made from the tables that requests are checked against, by `make docs`. `baleen up` serves it on 127.0.0.1:8000
(`gateway` in the cluster file); clients of OpenAI, DeepSeek and Anthropic need their base URL and key changed only.

A field that is not named here is ignored, and one that is null counts as absent. A wrong one is refused with 400 and
named in `error.param`. A body is a JSON object of at most `gateway.max_body_mib` MiB (413) that comes within
{BODY_TIMEOUT_S:g} s (504), with at most {MAX_DEPTH} objects and arrays within each other. Request line and headers
have at most {MAX_HEAD_BYTES // 1024} KiB, and there are at most {MAX_HEADERS} headers (431).

## Answers in a form

With `response_format`, `structured_outputs`, `guided_*`, `regex` or `ebnf` an answer cannot but keep to the form, token
by token, and with `tool_choice` `required` or a function it calls, with arguments that fit the schema. With `auto` the
tools with `strict` get such arguments, after free text or none. While the model thinks it is free, and what it must
write, a call too, comes after `</think>`. Of a `json_schema` without `strict`, keywords that cannot be enforced are
passed over; all else is refused with 400: schemas, expressions and grammars of more than {MAX_CHARS:,} characters,
schemas of more than {SCHEMA_DEPTH} levels, keywords that are not known (`not`, `if`, `contains`, `uniqueItems`,
`propertyNames`, `dependentRequired`), look-around and references back. Objects have their properties in the order of
the schema. Arguments of a call are an object of `properties`, without others unless `additionalProperties` says so,
then one at most: a grammar cannot forbid that a name comes twice, and such a call would be none.

`stop` and `max_tokens` end an answer wherever it is, which is then not complete (`finish_reason` `length` at
`max_tokens`). An answer that must end does so before `min_tokens` and with `ignore_eos` too. `logit_bias` and
penalties choose among what the form allows. A form cannot be asked of an answer that is continued (`prefix`), nor an
expression or a grammar beside tools that may be called.

## Models

The served name and these are one model, in whatever case: {_names(ALIASES)}.
It thinks by default under {_names(name for name, thinks in ALIASES.items() if thinks)}. Before the name,
`thinking`, `chat_template_kwargs` and `reasoning_effort` decide, in this order.

After `thinking_token_budget` tokens of an answer, or Anthropic's `thinking.budget_tokens`, it thinks no longer: what
comes next is `</think>`, once a character that was begun is whole, and then the answer. The tag counts as reasoning.

## Errors

`{{"error": {{"message", "type", "param", "code"}}}}`, and on Anthropic's paths
`{{"type": "error", "error": {{"type", "message"}}}}`. The likeliest have pages, docs/errors, which a gateway serves as
`/errors/NAME`: `error.doc` and the header `link` lead there.

| status | when | again? |
| --- | --- | --- |
| 400 | a field is wrong, or prompt and answer are longer than the context | no |
| 401, 403, 402 | no good key; the key may not; its balance is used up | no |
| 404, 405, 415 | no such path or model; another method; no JSON | no |
| 413, 431 | the body, or what comes before it, is too large | no |
| 409 | a request of this id runs | no |
| 422 | the answer cannot go on within its form | no |
| 429 | a limit of the key, or no room: after `retry-after`, `retry-after-ms` | yes |
| 500 | a fault of ours | once |
| 503 | no rank can take it now | yes |
| 504 | its time is over, or its body came too slowly | no |

Once a stream or an empty line has begun, the status stands: an error then comes as an event (`data: {{"error": ...}}`),
or as the body. An answer that ranks could not finish ends with `finish_reason` `insufficient_system_resource`.

## Streams

While nothing comes for `gateway.keep_alive_s` seconds, a stream gets `: keep-alive` and an answer in one piece an empty
line. A client that closes its connection ends its request at the ranks at once, streamed or not; so does one that takes
nothing for a minute. What was generated until then is charged.

### Streams that are cut

With `"resumable": true` beside `"stream": true`, every event has an `id`, and the answer goes on without its client.
Whoever sends GET or POST to the same path with the same key and `Last-Event-ID: ID` (a body is not read) gets exactly
the events after that one, and the rest as it comes; nothing is generated or charged again. The header
`x-last-event-id` of an answer is the id from before its first event here. A connection that still stood ends.

- A client has `gateway.resume_s` seconds after its connection ended, or after the answer did. After that the request
  ends, what was generated is charged, and 404 is the answer; so it is for streams of others, or of another gateway.
- One stream keeps {EACH_BYTES >> 20} MiB, and all of a gateway `gateway.resume_mib`. A full one waits for its client;
  what a connection that stands has taken makes room, and so do answers that have ended, the oldest first.
- 204 means that there is nothing after this event.
- Instead of `: keep-alive` and an empty line comes the line alone, since clients that know an id take an empty line
  for an event.

## Other paths

GET `/v1/models`, `/v1/models/NAME`, and in Anthropic's form `/anthropic/v1/models`, `/anthropic/v1/models/NAME`, the
list with `limit`, `after_id` and `before_id`; `/tokenizer_info`, `/health`, `/ping`, `/ready`, `/version`, `/metrics`;
`/v1/usage`, `/user/balance`, `/v1/prices`, `/v1/requests/ID`, `/v1/cluster` (docs/accounts.md); the pages `/` and
`/status`.
"""


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for title, text, fields in TABLES:
        rows = "".join(_row(field) for field in fields)
        parts.append(
            f"## {title}\n\n{text}\n\n| field | type | limits | what it does |\n| --- | --- | --- | --- |\n{rows}"
        )
    return "\n".join(parts)


def _row(field: Field) -> str:
    needed = ", required" if field.required else ""
    return f"| `{field.name}` | {field.kind}{needed} | {_limits(field)} | {field.effect} |\n"


def _limits(field: Field) -> str:
    found = []
    if field.low is not None:
        found.append(f"{'above' if field.above_low else 'from'} {_number(field.low)}")
    if field.high is not None:
        found.append(f"to {_number(field.high)}")
    if field.longest is not None:
        unit = {"string": "characters", "array": "elements", "object": "members"}.get(field.kind, "long")
        found.append(f"at most {field.longest:,} {unit}")
    return " ".join(found) + (", ".join(f"`{choice}`" for choice in field.choices))


def _number(value: float) -> str:
    return f"{int(value)}" if value == int(value) else f"{value:g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m router.gateway.api_page", description="Write the page on HTTP.")
    parser.add_argument("file", type=Path)
    parser.parse_args(arguments).file.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
