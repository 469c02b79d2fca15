"""Writes the held-out instances of `baleen eval demo`: `python -m examples.demo_model.make_held_out FILE`.

Arithmetic problems are kept out of training by a rule, the others are new draws from a space too large to repeat.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from baleen.text.encoding_v32 import Message, encode_messages
from cluster.evaluation.instances import TEXT, Instance, write_instances
from examples.demo_model.data import FAMILIES

COUNTS = {"arithmetic": 100, "tools": 60, "json": 60, "recall": 40, "talk": 40}
SEED = 20261124


def instances() -> list[Instance]:
    """All instances, and three texts of about 100 tokens for perplexity."""
    rng = random.Random(SEED)
    found = []
    for family, count in COUNTS.items():
        for _ in range(count):
            sample = FAMILIES[family](rng, True)
            found.append(
                Instance(
                    family=family,
                    thinking=sample.thinking,
                    messages=tuple(sample.messages[:-1]),
                    expected=sample.messages[-1],
                )
            )
    for family in ("arithmetic", "json", "recall"):
        sample = FAMILIES[family](rng, family == "arithmetic")
        text = encode_messages(sample.messages, thinking=sample.thinking)
        found.append(
            Instance(family=TEXT, thinking=False, messages=(), expected=Message(role="assistant", content=text))
        )
    return found


def main() -> int:
    """Write the file."""
    write_instances(Path(sys.argv[1]), instances())
    return 0


if __name__ == "__main__":
    sys.exit(main())
