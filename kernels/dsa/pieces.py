"""What the host knows of the pieces of a step that are attended to together; imports neither torch nor triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """Where a piece, the newest tokens of one sequence, lies among the tokens of its step.

    first_key: where its keys lie if those of all pieces follow each other. num_keys: tokens of the sequence, the
    piece's own included.
    """

    first_row: int
    num_rows: int
    first_key: int
    num_keys: int


@dataclass(frozen=True, slots=True)
class PieceRun:
    """Pieces that lie side by side, taken together. most_rows, most_keys: of one piece; the rest as in `Span`."""

    first_row: int
    num_rows: int
    first_key: int
    num_keys: int
    most_rows: int
    most_keys: int
