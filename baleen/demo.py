"""Where the demo model lies that ships with baleen: a small DeepSeek-V3.2, trained by examples/demo_model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEMO_NAME = "demo"


def demo_checkpoint() -> Path:
    """The folder of its checkpoint."""
    return Path(str(files("baleen") / "data" / DEMO_NAME))
