"""A request in the chat dialect: its fields, and the ask that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from baleen.budget import MAX_TOKENS, Budget
from baleen.constraint import Constraint
from baleen.errors import ContextExceeded, InvalidRequest
from baleen.sampling import MAX_SEED, SamplingParams
from baleen.text.answer_grammar import AnswerForm, answer_constraint
from baleen.text.chat_format import Prompt
from baleen.text.encoding_v32 import END_THINK
from router.gateway.ask import Ask
from router.gateway.chat.messages import MissingReasoning, read_messages
from router.gateway.chat.tools import ToolUse, read_tools
from router.gateway.engine import Engine
from router.gateway.fields import MAX_ITEMS, MAX_TEXT, Field, check
from router.gateway.forms import FIELDS as FORM_FIELDS
from router.gateway.forms import json_form, read_form
from router.gateway.models import ModelNames

Json = Mapping[str, Any]

MAX_N = 8
DEFAULT_TOKENS = 4096
DEFAULT_THINKING_TOKENS = 32768

FIELDS = (
    Field(name="model", kind="string", required=True, longest=256, effect="A name of GET /v1/models."),
    Field(name="messages", kind="array", required=True, longest=MAX_ITEMS, effect="What was said so far."),
    Field(name="max_tokens", kind="integer", low=1, effect="Most tokens to generate, reasoning included."),
    Field(name="max_completion_tokens", kind="integer", low=1, effect="The same, and counts if both are there."),
    Field(name="min_tokens", kind="integer", low=0, effect="No end before so many tokens."),
    Field(name="temperature", kind="number", low=0, high=2, effect="0 always takes the likeliest token."),
    Field(name="top_p", kind="number", low=0, above_low=True, high=1, effect="Share of probability to sample from."),
    Field(name="top_k", kind="integer", low=0, high=2**31 - 1, effect="Tokens to sample from, 0 for all."),
    Field(name="min_p", kind="number", low=0, high=1, effect="Least probability beside the likeliest token's."),
    Field(name="presence_penalty", kind="number", low=-2, high=2, effect="Against tokens that were generated."),
    Field(name="frequency_penalty", kind="number", low=-2, high=2, effect="The same, for each time."),
    Field(name="repetition_penalty", kind="number", low=0, above_low=True, high=100, effect="Of prompt and answer."),
    Field(name="logit_bias", kind="object", longest=1024, effect="Added to the logits of token ids, -100 to 100."),
    Field(name="stop", kind="string or array", longest=MAX_TEXT, effect="Up to 16 texts that end the answer."),
    Field(name="stop_token_ids", kind="array", longest=128, effect="Token ids that end the answer."),
    Field(name="ignore_eos", kind="boolean", effect="The model's own end does not end the answer."),
    Field(name="seed", kind="integer", low=0, high=MAX_SEED, effect="The same seed gives the same answer."),
    Field(name="n", kind="integer", low=1, high=MAX_N, effect="Number of answers."),
    Field(name="stream", kind="boolean", effect="Chunks as the answer comes."),
    Field(name="stream_options", kind="object", longest=8, effect="include_usage, continuous_usage_stats."),
    Field(name="logprobs", kind="boolean", effect="Log-probabilities of the tokens; not while thinking."),
    Field(name="top_logprobs", kind="integer", low=0, high=20, effect="So many rivals of each token."),
    *FORM_FIELDS,
    Field(name="tools", kind="array", longest=128, effect="Functions that the model may call."),
    Field(name="tool_choice", kind="string or object", longest=64, effect="none, auto, required, or which function."),
    Field(name="parallel_tool_calls", kind="boolean", effect="False: at most one call."),
    Field(name="thinking", kind="object", longest=8, effect="type: enabled or disabled."),
    Field(name="thinking_token_budget", kind="integer", low=0, high=MAX_TOKENS, effect="Most tokens of thinking."),
    Field(name="chat_template_kwargs", kind="object", longest=16, effect="thinking or enable_thinking."),
    Field(
        name="reasoning_effort",
        kind="string",
        choices=("none", "minimal", "low", "medium", "high", "xhigh", "max"),
        effect="none switches thinking off, all others on.",
    ),
    Field(name="modalities", kind="array", longest=8, effect="Nothing but text."),
    Field(name="cache_salt", kind="string", longest=512, effect="Cached prefixes are shared under the same salt only."),
    Field(name="user_id", kind="string", longest=512, effect="The same, for one user."),
    Field(name="priority", kind="integer", low=-100, high=100, effect="Higher goes first."),
    Field(name="continue_final_message", kind="boolean", effect="As prefix in the last message."),
    Field(name="return_token_ids", kind="boolean", effect="Ids of prompt and answer in the answer."),
    Field(name="resumable", kind="boolean", effect="A stream that is cut can be gone on with: see Streams."),
)
"""Fields of POST /v1/chat/completions; others are ignored."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_SAME = ("min_tokens", "ignore_eos", "seed", "n")


@dataclass(frozen=True, slots=True)
class ChatLimits:
    """What a gateway allows. max_output: tokens. missing_reasoning: see read_messages."""

    max_output: int = 65536
    missing_reasoning: MissingReasoning = "fill_empty"


async def read_ask(body: Json, engine: Engine, names: ModelNames, limits: ChatLimits, *, max_context: int) -> Ask:
    """The ask of a chat body. Raises InvalidRequest that names the field."""
    given = check(body, FIELDS)
    model = names.find(given["model"])
    if any(kind != "text" for kind in given.get("modalities", ())):
        raise InvalidRequest("modalities may only be text: the model writes nothing else", field="modalities")
    thinking = _thinks(given, default=model.thinks)
    messages = read_messages(given["messages"], thinking=thinking, missing=limits.missing_reasoning)
    tools = read_tools(given)
    form = _read_form(given, body)
    continues = bool(given["messages"][-1].get("prefix") or given.get("continue_final_message"))
    if form is not None and continues and tools.forced is None:
        problem = f"{form[1]} cannot be used where the last message is continued: the form is that of a whole answer"
        raise InvalidRequest(problem, field=form[1])
    prompt = engine.format.encode(
        messages,
        thinking=thinking,
        tools=tools.offered,
        response_format=_shown_format(given),
        continue_last=continues,
    )
    # what it thinks comes first, and then the grammar has it open the call
    opening = "" if tools.forced is None or prompt.thinking else engine.format.calls.opening(tools.forced)
    constraint = await _constraint(form, tools, prompt, engine)
    token_ids = await engine.encode(prompt.text + opening)
    sampling = read_sampling(given, thinking, limits, max_context - len(token_ids), len(token_ids), constraint)
    if prompt.thinking and "thinking_token_budget" in given:
        # a call amidst the thinking ends it, and its arguments are no place for the tag
        unless = engine.format.calls.begin if tools.offered else ""
        budget = Budget(tokens=given["thinking_token_budget"], end=END_THINK, unless=unless)
        sampling = replace(sampling, budget=budget)
    return Ask(
        model=given["model"],
        prompt=token_ids,
        sampling=sampling,
        thinking=prompt.thinking,
        tools=bool(tools.offered),
        one_call=tools.one_call,
        opening=opening,
        cache_salt=given.get("cache_salt", given.get("user_id", "")),
        priority=given.get("priority", 0),
    )


def _thinks(given: Json, *, default: bool) -> bool:
    if "thinking" in given:
        kind = given["thinking"].get("type")
        if kind not in ("enabled", "disabled"):
            raise InvalidRequest(f"thinking.type is {kind!r}, must be enabled or disabled", field="thinking.type")
        return bool(kind == "enabled")
    kwargs = given.get("chat_template_kwargs", {})
    for name in ("thinking", "enable_thinking"):
        if isinstance(kwargs.get(name), bool):
            return bool(kwargs[name])
    return given["reasoning_effort"] != "none" if "reasoning_effort" in given else default


def _read_form(given: Json, body: Json) -> tuple[Constraint, str] | None:
    form = read_form(given)
    if form is not None and form[1] == "response_format" and "json" not in str(body.get("messages")).lower():
        raise InvalidRequest(
            "Prompt must contain the word 'json' in some form to use 'response_format' of type 'json_object'.",
            field="response_format",
        )
    return form


def _shown_format(given: Json) -> Json | None:
    """What the model is told of the form: a schema."""
    form = given.get("response_format", {})
    schema: Json | None = form["json_schema"]["schema"] if form.get("type") == "json_schema" else None
    return schema


async def _constraint(
    form: tuple[Constraint, str] | None, tools: ToolUse, prompt: Prompt, engine: Engine
) -> Constraint | None:
    """What the answer keeps to, of its form and of its calls."""
    if not tools.offered:
        if form is None:
            return None
        await engine.forms.require(*form)
        return replace(form[0], after=END_THINK if prompt.thinking else "")
    otherwise = None
    if form is not None and tools.forced is None:
        await engine.forms.require(*form)
        otherwise = json_form(form[0])
        if otherwise is None:
            raise InvalidRequest(f"{form[1]} cannot be used with tools, unless tool_choice is none", field=form[1])
    elif tools.forced is None and not tools.strict:
        return None
    answer = AnswerForm(
        tools=tools.forms(),
        opened=tools.forced,
        many=not tools.one_call,
        otherwise=otherwise,
        lenient=form is not None and form[0].lenient,
        thinking=prompt.thinking,
    )
    writer, tokenizer = engine.format.calls, engine.tokenizer
    return await engine.forms.made(repr(answer), "tools", lambda: answer_constraint(answer, writer, tokenizer))


def read_sampling(
    given: Json,
    thinking: bool,
    limits: ChatLimits,
    room: int,
    num_prompt: int,
    constraint: Constraint | None = None,
    *,
    scores_prompt: bool = False,
) -> SamplingParams:
    """Sampling of a checked body. room: tokens that the context has beside the prompt. Raises InvalidRequest.

    scores_prompt: what log-probabilities say of the answer, they say of the prompt too.
    """
    wanted = given.get("max_completion_tokens", given.get("max_tokens"))
    if wanted is not None and wanted > limits.max_output:
        raise InvalidRequest(
            f"Invalid max_tokens value, the valid range of max_tokens is [1, {limits.max_output}]", field="max_tokens"
        )
    least = 1 if wanted is None else wanted
    if room < least:
        total = room + num_prompt
        raise ContextExceeded(
            f"the prompt has {num_prompt} tokens and max_tokens is {least}, the model's context is {total}",
            field="messages",
        )
    default = DEFAULT_THINKING_TOKENS if thinking else DEFAULT_TOKENS
    values: dict[str, Any] = {name: given[name] for name in _SAME if name in given}
    # while it thinks, the model is sampled as it was trained to be
    values |= {name: given[name] for name in _SAMPLING if name in given and not thinking}
    stop = given.get("stop", ())
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(text, str) for text in stops):
        raise InvalidRequest("stop must be a string or an array of strings", field="stop")
    logprobs = _logprobs(given, thinking)
    return SamplingParams(
        max_tokens=min(default, room, limits.max_output) if wanted is None else wanted,
        stop=stops,
        stop_token_ids=frozenset(_token_ids(given.get("stop_token_ids", ()))),
        logit_bias=_bias(given.get("logit_bias", {})),
        logprobs=logprobs,
        prompt_logprobs=logprobs if scores_prompt else None,
        constraint=constraint,
        **values,
    )


def _logprobs(given: Json, thinking: bool) -> int | None:
    if "top_logprobs" in given and not given.get("logprobs"):
        raise InvalidRequest(
            "Invalid top_logprobs and logprobs value, logprobs must be set to true if top_logprobs is used.",
            field="top_logprobs",
        )
    if not given.get("logprobs"):
        return None
    if thinking:
        raise InvalidRequest("logprobs cannot be used while the model thinks", field="logprobs")
    return int(given.get("top_logprobs", 0))


def _token_ids(raw: Any) -> list[int]:
    if not all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**32 for token in raw):
        raise InvalidRequest("stop_token_ids must be token ids", field="stop_token_ids")
    return list(raw)


def _bias(raw: Json) -> dict[int, float]:
    bias: dict[int, float] = {}
    for token, value in raw.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_token = token.isascii() and token.isdecimal() and len(token) <= 9
        if not is_token or not is_number or not -100 <= value <= 100:
            problem = f"logit_bias[{token[:40]!r}] must be a token id with a number from -100 to 100"
            raise InvalidRequest(problem, field="logit_bias")
        bias[int(token)] = float(value)
    return bias
