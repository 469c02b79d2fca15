"""What it costs to keep an answer to a form: llguidance beside xgrammar, with DeepSeek-V3.2's vocabulary.

usage: python -m benchmarks.constrained_decoding            llguidance, as the engine uses it
       python -m benchmarks.constrained_decoding --xgrammar xgrammar too, where it is installed

Times are medians and worst of one run, in microseconds unless said otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import torch

from baleen.constraint import Constraint
from baleen.sampling import SamplingParams
from baleen.text.grammars import Grammars
from kernels.sampling import reference
from tests.support.real_tokenizer import real_tokenizer
from workers.engine.bitmasks import Bitmasks
from workers.engine.grammar_mask import GrammarMask

VOCAB = 129_280

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            "required": ["street", "city"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "address"],
    "additionalProperties": False,
}
ANSWER = (
    '{"name": "Grace Hopper, née Murray", "age": 85, "tags": ["navy", "compilers", "COBOL"], '
    '"address": {"street": "1 Long Street with a name that goes on", "city": "Köln"}}'
)

COVERAGE: tuple[tuple[str, dict[str, Any], tuple[str, ...], tuple[str, ...]], ...] = (
    ("properties", PERSON, (ANSWER,), ('{"name": "a", "age": 1}',)),
    ("enum", {"enum": ["a", 1, None]}, ('"a"', "1", "null"), ('"b"', "2")),
    ("const", {"const": {"a": [1]}}, ('{"a": [1]}',), ('{"a": [2]}',)),
    ("anyOf", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, ('"a"', "3"), ("1.5", "[]")),
    ("oneOf, disjoint", {"oneOf": [{"type": "string"}, {"type": "integer"}]}, ('"a"', "3"), ("1.5",)),
    ("allOf", {"allOf": [{"type": "integer"}, {"minimum": 3}]}, ("3", "17"), ("2", '"3"')),
    ("$ref, recursive", {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}},
     ("[]", "[[], [[]]]"), ("[1]",)),
    ("minimum, maximum", {"type": "integer", "minimum": -3, "maximum": 120}, ("-3", "99", "120"), ("-4", "121")),
    ("number range", {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5}, ("0.5", "2.5"), ("0", "2.6")),
    ("multipleOf", {"type": "integer", "multipleOf": 5}, ("10", "0"), ("7",)),
    ("minLength, maxLength", {"type": "string", "minLength": 2, "maxLength": 3}, ('"ab"', '"日本語"'),
     ('"a"', '"abcd"')),
    ("pattern", {"type": "string", "pattern": "^[a-f]{2,3}$"}, ('"abc"',), ('"ag"', '"a"')),
    ("pattern, unanchored", {"type": "string", "pattern": "b+"}, ('"abc"',), ('"ac"',)),
    ("format date", {"type": "string", "format": "date"}, ('"2024-02-28"',), ('"2024-2-28"', '"x"')),
    ("format uuid", {"type": "string", "format": "uuid"}, ('"123e4567-e89b-12d3-a456-426614174000"',), ('"x"',)),
    ("format email", {"type": "string", "format": "email"}, ('"a@b.com"',), ('"x"',)),
    ("minItems, maxItems", {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2},
     ("[null]", "[null, null]"), ("[]", "[null, null, null]")),
    ("prefixItems", {"type": "array", "prefixItems": [{"type": "null"}], "items": False}, ("[null]",), ("[1]",)),
    ("additionalProperties", {"type": "object", "additionalProperties": {"type": "integer"}}, ('{"a": 1}', "{}"),
     ('{"a": "b"}',)),
    ("patternProperties", {"type": "object", "patternProperties": {"^x": {"type": "null"}},
                           "additionalProperties": False}, ('{"xy": null}', "{}"), ('{"y": null}', '{"x": 1}')),
    ("propertyNames", {"type": "object", "propertyNames": {"pattern": "^a"}}, ('{"ab": 1}',), ('{"b": 1}',)),
    ("minProperties", {"type": "object", "minProperties": 1}, ('{"a": 1}',), ("{}",)),
    ("uniqueItems", {"type": "array", "uniqueItems": True}, ("[1, 2]",), ("[1, 1]",)),
    ("not", {"type": "integer", "not": {"const": 3}}, ("4",), ("3",)),
    ("if, then", {"type": "integer", "if": {"minimum": 5}, "then": {"maximum": 7}}, ("6", "1"), ("9",)),
    ("dependentRequired", {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
     ("{}", '{"b": 1}'), ('{"a": 1}',)),
    ("contains", {"type": "array", "contains": {"const": 1}}, ("[1]",), ("[2]",)),
    ("white space", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
     ('{"a":1}', '{"a": 1}', '{\n  "a": 1\n}'), ("{a: 1}",)),
)  # fmt: skip
"""Keyword, schema, answers that fit, answers that do not: all of them checked with `jsonschema` first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.constrained_decoding", description=__doc__)
    parser.add_argument("--xgrammar", action="store_true", help="measure xgrammar too")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for _, schema, good, bad in COVERAGE:
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        assert all(validator.is_valid(json.loads(text)) for text in good)
        assert not any(validator.is_valid(json.loads(text)) for text in bad if text != "{a: 1}")
    print("| what | llguidance |" + (" xgrammar |" if wanted.xgrammar else ""))
    print("| --- | ---: |" + (" ---: |" if wanted.xgrammar else ""))
    columns = [_llguidance()] + ([_xgrammar()] if wanted.xgrammar else [])
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")
    _engine()


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def _timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1e6


def _spread(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.1f}, at worst {max(times):.0f}"


def _report(
    load_us: float,
    mib: float,
    compile_new: Callable[[dict[str, Any]], object],
    matcher_of: Callable[[dict[str, Any]], tuple[Callable[[], object], Callable[[int], bool], Callable[[], bool]]],
) -> dict[str, str]:
    """matcher_of: for a schema: fill a mask, take a token, whether the answer may end."""
    tokenizer, ids = real_tokenizer(), real_tokenizer().encode(ANSWER)
    compiles = [
        _timed(lambda schema={**PERSON, "title": str(number)}: compile_new(schema)) / 1000 for number in range(20)
    ]
    cold, warm, takes = list[float](), list[float](), list[float]()
    for times in (cold, warm):
        fill, take, _ = matcher_of(PERSON)
        for token_id in ids:
            times.append(_timed(fill))
            takes.append(_timed(lambda take=take, token_id=token_id: take(token_id)))
    covered, refused, wrong = 0, list[str](), list[str]()
    for name, schema, good, bad in COVERAGE:
        try:
            verdicts = []
            for text, fits in [(text, True) for text in good] + [(text, False) for text in bad]:
                _, take, may_end = matcher_of(schema)
                accepted = all(take(token_id) for token_id in tokenizer.encode(text)) and may_end()
                verdicts.append(accepted is fits)
        except Exception:
            refused.append(name)
            continue
        covered += all(verdicts)
        wrong += [] if all(verdicts) else [name]
    return {
        "vocabulary made ready, ms": f"{load_us / 1000:.0f}",
        "memory for it, MiB": f"{mib:.0f}",
        "a schema of 6 properties compiled, ms": f"{statistics.median(compiles):.2f}, at worst {max(compiles):.1f}",
        "mask of a token, first answer": _spread(cold),
        "mask of a token, second answer": _spread(warm),
        "a token taken": _spread(takes),
        f"keywords right, of {len(COVERAGE)}": str(covered),
        "refused": ", ".join(refused) or "none",
        "taken but not kept": ", ".join(wrong) or "none",
    }


def _llguidance() -> dict[str, str]:
    tokenizer = real_tokenizer()
    before, begin = _resident_mib(), time.perf_counter()
    grammars = Grammars(tokenizer, vocab_size=VOCAB, eos_token_ids=(1,))
    load_us, mib = (time.perf_counter() - begin) * 1e6, _resident_mib() - before
    bitmask = np.zeros(-(-VOCAB // 32), dtype=np.int32)

    def constraint(schema: dict[str, Any]) -> Constraint:
        return Constraint(kind="json_schema", text=json.dumps(schema))

    def matcher_of(schema: dict[str, Any]) -> Any:
        matcher = grammars.matcher(constraint(schema))
        return (
            lambda: matcher.unsafe_compute_mask_ptr(bitmask.ctypes.data, bitmask.nbytes),
            lambda token_id: bool(matcher.consume_token(token_id)),
            matcher.is_accepting,
        )

    return _report(load_us, mib, lambda schema: grammars.matcher(constraint(schema)), matcher_of)


def _xgrammar() -> dict[str, str]:
    import xgrammar  # not a dependency: see docs/adr

    tokenizer = real_tokenizer()
    before, begin = _resident_mib(), time.perf_counter()
    added = tokenizer.added_tokens
    pieces = [b"" if i in added else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    info = xgrammar.TokenizerInfo(pieces, vocab_type=xgrammar.VocabType.RAW, vocab_size=VOCAB, stop_token_ids=[1])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    load_us, mib = (time.perf_counter() - begin) * 1e6, _resident_mib() - before
    bitmask = xgrammar.allocate_token_bitmask(1, VOCAB)

    def matcher_of(schema: dict[str, Any]) -> Any:
        compiled = compiler.compile_json_schema(json.dumps(schema), strict_mode=False)
        matcher = xgrammar.GrammarMatcher(compiled)

        def may_end() -> bool:
            matcher.fill_next_token_bitmask(bitmask)
            return bool(bitmask[0, 0] >> 1 & 1)

        return lambda: matcher.fill_next_token_bitmask(bitmask), matcher.accept_token, may_end

    compile_new = lambda schema: compiler.compile_json_schema(json.dumps(schema), strict_mode=False)  # noqa: E731
    return _report(load_us, mib, compile_new, matcher_of)


def _engine() -> None:
    """The engine's own part: all masks of a step, and what is forbidden in the logits."""
    tokenizer = real_tokenizer()
    grammars = Grammars(tokenizer, vocab_size=VOCAB, eos_token_ids=(1,))
    sampling = SamplingParams(constraint=Constraint(kind="json_schema", text=json.dumps(PERSON)))
    assert sampling.constraint is not None
    ids, bitmasks = tokenizer.encode(ANSWER), Bitmasks(VOCAB)
    x_V = torch.zeros(VOCAB)
    print("\n| requests in a step | masks, per request | forbidding in the logits of one, on a CPU |")
    print("| ---: | ---: | ---: |")
    for number in (1, 8, 64):
        masks = [GrammarMask(grammars.matcher(sampling.constraint), grammars, sampling) for _ in range(number)]
        fills, forbids = list[float](), list[float]()
        for token_id in ids:
            begin = time.perf_counter()
            filled_RW = bitmasks.fill(masks)
            fills.append((time.perf_counter() - begin) / number * 1e6)
            bitmask = torch.from_numpy(filled_RW)[0]
            forbids.append(_timed(lambda bitmask=bitmask: reference.forbid_(x_V, bitmask)))
            for mask in masks:
                mask.accept(token_id)
        print(f"| {number} | {_spread(fills)} | {_spread(forbids)} |")


if __name__ == "__main__":
    main()
