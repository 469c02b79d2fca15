"""One way to compile a kernel, and its launch: what the gate compiles ahead of time is what a launcher runs.

A launcher lists every build that it can choose in its `configs()` and launches through the same objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ALIGNMENT = 16
INDICES = ("*i32", "*i64")

_TYPES = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8e4nv",
    "uint8": "u8",
    "int32": "i32",
    "int64": "i64",
    "float64": "fp64",
}


def type_name(tensor: Any) -> str:
    """Triton's name of a torch tensor's dtype. Raises KeyError for one that no kernel takes."""
    return _TYPES[str(tensor.dtype).removeprefix("torch.")]


@dataclass(frozen=True, kw_only=True, eq=False)
class Build:
    """A kernel with everything that the compiler is told.

    types: Triton's type of each argument that is neither a constant nor an int32 number: "*bf16", "*fp8e4nv", "*u8",
    "*fp32", "*i32", "*i64", "i64", "fp32". divisible: integer arguments (strides) that are multiples of 16 in every
    call; pointers are compiled as such. tensor_cores: the kernel must use wgmma on sm_90. fusion: whether a product and
    a sum may be rounded as one; not where bits must be those of another machine.

    Triton compiles anew where arguments are otherwise: with wider loads for a number that happens to be a multiple of
    16, with narrower ones for lengths and tables that are slices. Nothing else differs between what is compiled ahead
    of time and what runs.
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    tensor_cores: bool = False
    fusion: bool = True
    _aligned: tuple[str, ...] = field(init=False)
    _checked: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = set(self.kernel.arg_names)
        unknown = (set(self.types) | set(self.constants) | set(self.divisible)) - names
        assert not unknown, f"{self.name}: no such arguments: {sorted(unknown)}"
        pointers = tuple(name for name in self.kernel.arg_names if self.types.get(name, "i32").startswith("*"))
        checked = tuple(name for name in pointers if self.types[name] not in INDICES)
        object.__setattr__(self, "_aligned", pointers + self.divisible)
        object.__setattr__(self, "_checked", checked + self.divisible)

    @property
    def name(self) -> str:
        """The kernel and its constants, in one line."""
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        function = getattr(self.kernel, "fn", self.kernel)
        return f"{function.__name__} {constants} w{self.num_warps} st{self.num_stages}"

    @property
    def aligned(self) -> tuple[str, ...]:
        """Arguments that the compiler takes for multiples of 16: addresses in bytes, numbers as they are."""
        return self._aligned

    def options(self) -> dict[str, Any]:
        """Options of the compiler. Fusion of multiply and add is stated, so that no upgrade changes bits."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": self.fusion}

    def launch(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """Run the kernel over `grid` (one to three numbers; nothing runs when one is 0) with its other arguments.

        Raises ValueError when a stride that was compiled as a multiple of 16, or the address of numbers, is none.
        """
        for name in self._checked:
            value = arguments[name]
            place = value if isinstance(value, int) else value.data_ptr()
            if place % ALIGNMENT:
                raise ValueError(f"{self.name}: {name} is {place}, and must be a multiple of {ALIGNMENT}")
        if 0 not in grid:
            self.kernel[grid](**arguments, **self.constants, **self.options())
