"""A request for text completions: its fields, and the asks that they make, one for each prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baleen.constraint import Constraint
from baleen.errors import InvalidRequest
from baleen.text.tokenizer_files import BOS_TOKEN
from router.gateway.ask import Ask
from router.gateway.chat.request import FIELDS as CHAT_FIELDS
from router.gateway.chat.request import MAX_N, read_sampling
from router.gateway.dialect import Gateway
from router.gateway.engine import Engine
from router.gateway.fields import MAX_TEXT, Field, check
from router.gateway.forms import FIELDS as FORM_FIELDS
from router.gateway.forms import read_form

Json = Mapping[str, Any]

DEFAULT_TOKENS = 16
MAX_PROMPTS = 128

_SAME = (
    *("model", "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "logit_bias", "stop", "stop_token_ids", "ignore_eos", "seed", "n"),
    *("stream", "stream_options", "cache_salt", "user_id", "priority", "return_token_ids"),
    "resumable",
)
FIELDS = (
    Field(
        name="prompt",
        kind="string or array",
        required=True,
        longest=MAX_TEXT,
        effect="A text, token ids, or an array of either; before a text stands the token that begins one.",
    ),
    Field(name="suffix", kind="string", longest=MAX_TEXT, effect="The gap between prompt and suffix is filled."),
    Field(
        name="max_tokens",
        kind="integer",
        low=0,
        effect="Most tokens to generate; 0, for `echo` with `logprobs`, generates none.",
    ),
    Field(name="echo", kind="boolean", effect="Answers begin with their prompt."),
    Field(
        name="logprobs",
        kind="integer",
        low=0,
        high=20,
        effect="Log-probabilities, and so many rivals; with `echo` of the prompt too.",
    ),
    Field(name="best_of", kind="integer", low=1, high=MAX_N, effect="Must be n: none is left out."),
    *(field for field in CHAT_FIELDS if field.name in _SAME),
    *FORM_FIELDS,
)
"""Fields of POST /v1/completions; others are ignored."""

_FIM = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


@dataclass(frozen=True, slots=True)
class TextRequest:
    """asks: one for each prompt. echoes: what each answer begins with."""

    asks: tuple[Ask, ...]
    echoes: tuple[str, ...]
    streams: bool


async def read_asks(body: Json, gateway: Gateway) -> TextRequest:
    """The asks of a body. Raises InvalidRequest that names the field."""
    given = check(body, FIELDS)
    gateway.names.find(given["model"])
    engine = gateway.engine
    if given.get("best_of", given.get("n", 1)) != given.get("n", 1):
        raise InvalidRequest(f"best_of is {given['best_of']}, must be n ({given.get('n', 1)})", field="best_of")
    if given.get("echo") and "suffix" in given:
        raise InvalidRequest("echo cannot be used with suffix", field="echo")
    scores_prompt = bool(given.get("echo")) and "logprobs" in given
    if given.get("max_tokens") == 0 and not scores_prompt:
        problem = "max_tokens is 0, must be at least 1 where not both echo and logprobs are asked for"
        raise InvalidRequest(problem, field="max_tokens")
    form = read_form(given)
    if form is not None:
        await engine.forms.require(*form)
    asks, echoes = [], []
    for prompt in _prompts(given["prompt"]):
        token_ids = await _encode(prompt, given.get("suffix"), engine)
        constraint = form[0] if form is not None else None
        asks.append(_ask(given, token_ids, gateway, constraint, scores_prompt=scores_prompt))
        text = prompt if isinstance(prompt, str) else engine.tokenizer.decode(prompt)
        echoes.append(text if given.get("echo") else "")
    return TextRequest(tuple(asks), tuple(echoes), bool(given.get("stream")))


def _prompts(raw: str | list[Any]) -> list[str | list[int]]:
    if isinstance(raw, str):
        return [raw]
    if not raw:
        raise InvalidRequest("prompt is empty", field="prompt")
    if all(isinstance(one, int) and not isinstance(one, bool) for one in raw):
        return [_ids(raw, "prompt")]
    if len(raw) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt has {len(raw)} prompts, at most {MAX_PROMPTS} are allowed", field="prompt")
    prompts: list[str | list[int]] = []
    for place, one in enumerate(raw):
        if not isinstance(one, (str, list)):
            where = f"prompt[{place}]"
            raise InvalidRequest(f"{where} is {type(one).__name__}, must be a string or token ids", field=where)
        prompts.append(one if isinstance(one, str) else _ids(one, f"prompt[{place}]"))
    return prompts


def _ids(raw: list[Any], where: str) -> list[int]:
    wrong = next(
        (at for at, one in enumerate(raw) if type(one) is not int or not 0 <= one < 1 << 31), None if raw else 0
    )
    if wrong is not None:
        raise InvalidRequest(f"{where}[{wrong}] must be a token id", field=f"{where}[{wrong}]")
    return raw


async def _encode(prompt: str | list[int], suffix: str | None, engine: Engine) -> list[int]:
    if suffix is None:
        return prompt if isinstance(prompt, list) else await engine.encode(BOS_TOKEN + prompt)
    if isinstance(prompt, list):
        raise InvalidRequest("suffix needs a prompt that is text", field="suffix")
    begin, hole, end = _FIM
    if any(len(engine.tokenizer.encode(tag)) != 1 for tag in _FIM):
        raise InvalidRequest("suffix cannot be used: the model has no tokens for gaps", field="suffix")
    return await engine.encode(f"{BOS_TOKEN}{begin}{prompt}{hole}{suffix}{end}")


def _ask(
    given: Json, token_ids: list[int], gateway: Gateway, constraint: Constraint | None, *, scores_prompt: bool
) -> Ask:
    room = gateway.max_context - len(token_ids)
    wanted = {**given, "logprobs": "logprobs" in given, "top_logprobs": given.get("logprobs", 0)}
    if not wanted["logprobs"]:
        del wanted["top_logprobs"]
    wanted.setdefault("max_tokens", max(1, min(DEFAULT_TOKENS, room)))
    try:
        sampling = read_sampling(
            wanted, False, gateway.limits, room, len(token_ids), constraint, scores_prompt=scores_prompt
        )
    except InvalidRequest as error:
        field = "prompt" if error.field == "messages" else error.field
        raise error.renamed(field) from error
    return Ask(
        model=given["model"],
        prompt=token_ids,
        sampling=sampling,
        thinking=None,
        cache_salt=given.get("cache_salt", given.get("user_id", "")),
        priority=given.get("priority", 0),
    )
