"""Every field of every table at its bounds and beyond them, as the table says."""

import math

import pytest

from baleen.errors import InvalidRequest
from router.gateway.api_page import TABLES
from router.gateway.fields import check

FIELDS = list({repr(field): field for _, _, fields in TABLES for field in fields}.values())
LONG = 20_000
"""Longest value that is made here."""


def values(field):
    """Good and bad values."""
    good, bad = [], [object]
    kinds = field.kind.split(" or ")
    for kind in kinds:
        if kind in ("integer", "number"):
            low = field.low + (1e-6 if field.above_low else 0)
            good.append(low)
            bad += [field.low if field.above_low else field.low - 1, True, math.nan, math.inf, "1"]
            if field.high is not None:
                good.append(field.high)
                bad.append(field.high + 1)
            if kind == "integer":
                bad.append(field.low + 0.5)
        elif kind == "boolean":
            good += [True, False]
            bad += [0, "true"]
        elif field.choices:
            good += field.choices
            bad += ["", field.choices[0].upper()]
        elif field.longest is not None and field.longest <= LONG:
            size = field.longest
            make = {"string": "x".__mul__, "array": [0].__mul__, "object": lambda n: {str(i): 0 for i in range(n)}}
            good.append(make[kind](size))
            bad.append(make[kind](size + 1))
    samples = {"string": "x", "array": [], "object": {}, "boolean": True, "integer": 1, "number": 1.5}
    bad += [sample for kind, sample in samples.items() if not {kind, *_wider(kind)} & set(kinds)]
    return good, [one for one in bad if one is not object]


def _wider(kind):
    return {"number"} if kind == "integer" else set()


@pytest.mark.parametrize("field", FIELDS, ids=[field.name for field in FIELDS])
def test_a_field_at_its_bounds(field):
    good, bad = values(field)
    for value in good:
        assert check({field.name: value}, [field]) == {field.name: value}
    for value in bad:
        with pytest.raises(InvalidRequest) as caught:
            check({field.name: value}, [field])
        assert caught.value.field == field.name and field.name in str(caught.value)
    if field.required:
        with pytest.raises(InvalidRequest, match="is missing"):
            check({}, [field])
    else:
        assert check({field.name: None}, [field]) == check({}, [field]) == {}
