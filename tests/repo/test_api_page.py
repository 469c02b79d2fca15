"""docs/api.md is what the tables of fields say, and these bound everything."""

from pathlib import Path

import pytest

from router.gateway.api_page import TABLES, page

ROOT = Path(__file__).parents[2]
FIELDS = [(title, field) for title, _, fields in TABLES for field in fields]


def test_the_page_is_current():
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == page(), "run `make docs`"


@pytest.mark.parametrize(("title", "field"), FIELDS, ids=[f"{title}-{field.name}" for title, field in FIELDS])
def test_every_field_has_its_bounds(title, field):
    kinds = set(field.kind.split(" or "))
    if kinds & {"string", "array", "object"}:
        assert field.longest is not None or field.choices, f"{field.name} has no length"
    if kinds & {"integer", "number"}:
        assert field.low is not None, f"{field.name} has no range"
    assert field.effect.endswith(".")
