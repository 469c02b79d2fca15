"""docs/errors is what the table of pages says, and every page says enough."""

from pathlib import Path

import pytest

from router.gateway.error_pages import PAGES, PREFIX, page_paths

FOLDER = Path(__file__).parents[2] / "docs" / "errors"


def test_the_pages_are_current():
    made = {f"{path.removeprefix(PREFIX)}.md": text for path, text in page_paths().items()}
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()} == made, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_page_says_why_and_what_to_do(page):
    assert len(page.why) > 80 and page.do.count("\n- ") >= 1 and page.do.startswith("- ")
    assert max(map(len, f"{page.why}\n{page.do}".split())) < 60


def test_there_are_ten():
    assert len({page.name for page in PAGES}) == len(PAGES) == 10
