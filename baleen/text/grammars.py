"""From a constraint to what says token by token which may come next. Only this module and `lark` import llguidance.

Text is matched by its bytes, however it is cut into tokens. Added tokens (those of prompts, calls and thinking) are no
text: only a grammar that names one by its id lets it come.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from baleen.constraint import Constraint
from baleen.errors import InvalidRequest
from baleen.text.lark import JSON_OPTIONS, require_depth, text_until
from baleen.text.tokenizer import Tokenizer

MOST_GRAMMARS = 256
"""Grammars that are kept ready, the least recently used ones go first."""

_STACK_LOCK = Lock()

_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=25_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""What a grammar may cost. One that costs more to begin is refused; at a token it ends its request as a dead end."""


STACK_BYTES = 256 << 20
"""Of threads in which grammars are made ready: the library follows chains of rules and references by recursion, and
would end the process where its stack does. 64 MiB are enough for the longest chain that `MAX_CHARS` leave room for."""


@contextmanager
def deep_stack() -> Iterator[None]:
    """Threads that start within the block have room for every grammar; only what is used of it takes memory."""
    with _STACK_LOCK:
        before = threading.stack_size(STACK_BYTES)
        try:
            yield
        finally:
            threading.stack_size(before)


def check(constraint: Constraint) -> None:
    """Raise InvalidRequest that names the field, if the constraint is malformed or asks for what is not supported.

    Takes milliseconds, and for the largest schemas 0.2 s. Constraints of strangers need a thread of `deep_stack`.
    """
    problem = LLMatcher.validate_grammar(_body(constraint), limits=_LIMITS)
    if problem:
        raise _refuse(problem)


class Grammars:
    """Constraints made ready for one tokenizer, the recent ones kept. For any thread."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """vocab_size: of the model; ids that the tokenizer does not know are never allowed.

        eos_token_ids: at least one.
        """
        self.tokenizer = tokenizer
        self.eos_token_ids = tuple(eos_token_ids)
        self._vocabulary = _vocabulary(tokenizer, vocab_size, eos_token_ids[0])
        self._lock = Lock()
        self._ready: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def matcher(self, constraint: Constraint) -> LLMatcher:
        """A matcher at the beginning of an answer; the caller's own. Raises InvalidRequest that names the field.

        Constraints of strangers need a thread of `deep_stack`.
        """
        with self._lock:
            ready = self._ready.get(constraint)
            if ready is not None:
                self._ready.move_to_end(constraint)
                return ready.deep_copy()
        ready = self._compile(constraint)
        with self._lock:
            self._ready[constraint] = ready
            if len(self._ready) > MOST_GRAMMARS:
                self._ready.popitem(last=False)
            return ready.deep_copy()

    def _compile(self, constraint: Constraint) -> LLMatcher:
        grammar = _body(constraint)
        if constraint.after:
            grammar = self._after(constraint.after, grammar)
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            # the first mask is the dearest, and every answer begins with it
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refuse(matcher.get_error())
        return matcher

    def _after(self, tag: str, grammar: str) -> str:
        """The same grammar behind free text that ends with the first `tag`."""
        parts = json.loads(grammar)["grammars"]
        assert len(parts) == 1
        terminal, free = text_until("FREE", tag, self.tokenizer)
        lark = f"start: {free} @body\n{terminal}"
        return json.dumps({"grammars": [{"lark_grammar": lark}, {**parts[0], "name": "body"}]})


def _body(constraint: Constraint) -> str:
    """The constraint in llguidance's own form, without what comes before it."""
    if constraint.kind == "json_object":
        return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=JSON_OPTIONS)  # type: ignore[arg-type]
    if constraint.kind == "json_schema":
        schema = _read_schema(constraint.text)
        options = {**JSON_OPTIONS, "lenient": constraint.lenient, "coerce_one_of": constraint.lenient}
        try:
            return LLMatcher.grammar_from_json_schema(schema, overrides=options)  # type: ignore[arg-type]
        except ValueError as error:
            raise _refuse(str(error)) from error
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    try:
        lark = any_to_lark(constraint.text)
    except (Exception, RecursionError) as error:  # the library raises nothing more precise
        raise _refuse(str(error)) from error
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def _read_schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refuse(f"the schema is no JSON: {error}") from error
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    if not isinstance(schema, dict):
        raise _refuse(f"the schema is {type(schema).__name__}, must be an object")
    require_depth(schema, "constraint.text")
    return schema


def _refuse(problem: str) -> InvalidRequest:
    """The library's own words, without what it tells developers after them."""
    lines = [line.strip() for line in problem.removeprefix("ERROR: ").splitlines()]
    shown = " ".join(line for line in lines if line)[:300]
    return InvalidRequest(f"constraint cannot be kept: {shown}", field="constraint.text")


class _Pieces:
    """The vocabulary as llguidance asks for it: bytes of each id, and which are no text."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        added = tokenizer.added_tokens
        known = min(vocab_size, tokenizer.vocab_size)
        self.eos_token_id = eos_token_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(known)] + [b""] * (vocab_size - known)
        self.special_token_ids = sorted({token_id for token_id in added if token_id < vocab_size} | {eos_token_id})
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode())


def _vocabulary(tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Pieces(tokenizer, vocab_size, eos_token_id)), eos_token=eos_token_id)
