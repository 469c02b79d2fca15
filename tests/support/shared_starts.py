"""What several tests share is started twice at most: after that, each of them fails at once, with the same error.

A pytest plugin. A test of real processes gets one more try, and with each try a shared fixture that did not come up
would be tried again, for every test of its file.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from _pytest.fixtures import SubRequest

MOST_STARTS = 2

_failures: dict[tuple[object, int], list[BaseException]] = {}
"""By fixture and the place of its parameter, as far as this process has seen."""


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: SubRequest) -> Generator[None, Any, Any]:
    """Start a fixture, unless it is shared and has failed as often as it may."""
    if fixturedef.scope == "function":
        return (yield)
    failures = _failures.setdefault((fixturedef, getattr(request, "param_index", 0)), [])
    if len(failures) >= MOST_STARTS:
        # as pytest itself keeps it, which then takes the fixture down in order
        fixturedef.cached_result = (None, fixturedef.cache_key(request), (failures[-1], failures[-1].__traceback__))
        raise failures[-1]
    try:
        return (yield)
    except (Exception, pytest.fail.Exception) as error:
        # as a timeout is one
        failures.append(error)
        raise
