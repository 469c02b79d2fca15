"""Expected outputs of an independent implementation, kept in tests/data/golden."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


@functools.cache
def golden(name: str) -> Any:
    """One golden file, by its name without `.json`."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
