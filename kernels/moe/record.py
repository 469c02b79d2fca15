"""The form of a record, in which a row travels to a rank of its experts; known without importing kernels."""

from __future__ import annotations

from dataclasses import dataclass

from baleen.model_spec import QUANT_BLOCK


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """Where the parts of a record begin, in bytes, and how long it is."""

    hidden: int
    slots: int
    float8: bool

    @property
    def scales_at(self) -> int:
        """End of the row's numbers."""
        return self.hidden * (1 if self.float8 else 2)

    @property
    def ids_at(self) -> int:
        """End of the scales, of which there may be none."""
        return self.scales_at + (self.hidden // QUANT_BLOCK * 4 if self.float8 else 0)

    @property
    def num_bytes(self) -> int:
        """Length of a record: a multiple of 16, so that every row is aligned."""
        return -(-(self.ids_at + 8 * self.slots) // 16) * 16
