"""Every operation that has a kernel, one line each: what tests, the gate and `baleen bench kernels` go by.

Names are given as text ("module:name"), so that reading this page imports neither torch nor triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Operation:
    """One public function with a kernel behind it.

    launcher: the function; the `configs()` of its module lists every build that it can choose. reference: the PyTorch
    truth beside it. bench: a function without arguments that gives its cases (kernels/bench).
    """

    name: str
    launcher: str
    reference: str
    bench: str

    def configs(self) -> list[Any]:
        """Every `kernels.builds.Build` that the launcher can choose; imports triton."""
        return list(import_module(self.launcher.split(":")[0]).configs())


OPERATIONS: tuple[Operation, ...] = ()


def resolve(name: str) -> Any:
    """The object that "module:name" stands for."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
