"""Draws the loss curve of a run: `python -m examples.demo_model.plot STATE_DIR FILE.svg`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 320, 50, 40
COLOURS = {"dense": "#48a878", "index": "#a88848", "sparse": "#a84878"}
HIGHEST = 6.0


def draw(rows: list[dict[str, Any]]) -> str:
    """An SVG of the loss over what the model writes, by tokens; the colour is the stage.

    Where a run went back to the state that it had saved, the part that was lost is left out.
    """
    most = rows[-1]["tokens"]
    kept: list[dict[str, Any]] = []
    for row in reversed(rows):
        if not kept or row["tokens"] < kept[-1]["tokens"]:
            kept.append(row)
    rows = kept[::-1]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]

    def place(tokens: float, loss: float) -> tuple[float, float]:
        x = LEFT + tokens / most * (WIDTH - LEFT - 15)
        y = 15 + (1 - min(loss, HIGHEST) / HIGHEST) * (HEIGHT - BOTTOM - 15)
        return round(x, 1), round(y, 1)

    for loss in range(int(HIGHEST) + 1):
        x, y = place(0, loss)
        parts.append(f'<path d="M{x} {y}H{WIDTH - 15}" stroke="#ddd"/><text x="{x - 18}" y="{y + 4}">{loss}</text>')
    for million in range(int(most / 1e6) + 1):
        x, y = place(million * 1e6, 0)
        parts.append(f'<text x="{x}" y="{y + 16}">{million}</text>')
    parts.append(f'<text x="{WIDTH // 2 - 60}" y="{HEIGHT - 8}">millions of tokens; loss in nats</text>')
    for row in rows:
        x, y = place(row["tokens"], row["written"])
        parts.append(f'<circle cx="{x}" cy="{y}" r="1.6" fill="{COLOURS[row["stage"]]}"/>')
    for number, (stage, colour) in enumerate(COLOURS.items()):
        parts.append(f'<text x="{WIDTH - 80}" y="{30 + 15 * number}" fill="{colour}">{stage}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    """Draw it."""
    log = (Path(sys.argv[1]) / "log.jsonl").read_text(encoding="utf-8")
    Path(sys.argv[2]).write_text(draw([json.loads(line) for line in log.splitlines()]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
