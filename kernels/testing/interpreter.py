"""Repairs of Triton's CPU interpreter, without which tests of bfloat16 and float8 kernels mean nothing.

As it comes (seen in 3.6.0, 3.7.1 and 3.9.0) it multiplies and adds bfloat16 as the integers of its bits, cuts off where
it should round, and rounds and overflows float8 wrongly, all in silence. Here casts go through torch, and arithmetic of
these types through float32, rounded back. Call `install()` before the first kernel runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter

FLOATS = {
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
REPAIRED = {"bf16", "fp8e4nv", "fp8e5"}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def install() -> None:
    """Repair the interpreter of this process, once."""
    builder = triton_interpreter.InterpreterBuilder
    if getattr(builder, "repaired_by_baleen", False):
        return
    builder.repaired_by_baleen = True
    _repair_casts(builder)
    _repair_arithmetic(builder)
    _repair_dot(builder)
    _repair_reductions()


def _as_torch(data: Any, dtype: Any) -> torch.Tensor:
    """The interpreter's array of bits as a tensor of what they mean."""
    kind = FLOATS[str(dtype)]
    bits = np.array(data, ndmin=1, order="C").view(SIGNED[kind.itemsize])
    return torch.from_numpy(bits.copy()).view(kind)


def _as_bits(x: torch.Tensor, shape: tuple[int, ...]) -> Any:
    size = x.dtype.itemsize
    signed = x.contiguous().view(getattr(torch, SIGNED[size].__name__)).numpy()
    return signed.view(UNSIGNED[size]).reshape(shape)


def _numbers(handle: Any) -> Any:
    return _as_torch(handle.data, handle.dtype.scalar).float().numpy().reshape(np.shape(handle.data))


def _is_repaired(dtype: Any) -> bool:
    return str(dtype) in REPAIRED


def _convert(data: Any, source: Any, target: Any) -> Any:
    """Bits of `target` for bits of `source`: to nearest even; float8 saturates and keeps NaN."""
    shape = np.shape(data)
    x = _as_torch(data, source)
    kind = FLOATS[str(target)]
    if kind.itemsize == 1:
        largest = torch.finfo(kind).max
        x = x.float()
        x = torch.where(x.isnan(), x, x.clamp(-largest, largest))
    elif x.dtype.itemsize == 1:
        x = x.float()
    return _as_bits(x.to(kind), shape)


def _handle(data: Any, dtype: Any) -> Any:
    return triton_interpreter.TensorHandle(data, dtype)


def _rounded(numbers: Any, dtype: Any) -> Any:
    """float32 numbers as a handle of `dtype`."""
    bits = _convert(np.asarray(numbers, dtype=np.float32), tl.float32, dtype)
    return _handle(bits.view(triton_interpreter._get_np_dtype(dtype)), dtype)


def _repair_casts(builder: Any) -> None:
    plain_convert, plain_cast = triton_interpreter._convert_float, builder.cast_impl

    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if str(source) in FLOATS and str(target) in FLOATS:
            return _convert(data, source, target)
        return plain_convert(data, source, target, rounding)

    def cast(self: Any, handle: Any, target: Any) -> Any:
        source, scalar = handle.dtype.scalar, target.scalar
        if not (_is_repaired(source) or _is_repaired(scalar)):
            return plain_cast(self, handle, target)
        layout = triton_interpreter._get_np_dtype(target)
        if str(source) in FLOATS and str(scalar) in FLOATS:
            return _handle(_convert(handle.data, source, scalar).view(layout), scalar)
        if _is_repaired(source):
            return _handle(_numbers(handle).astype(layout), scalar)
        return _rounded(handle.data.astype(np.float32), scalar)

    triton_interpreter._convert_float = convert
    builder.cast_impl = cast


def _repair_arithmetic(builder: Any) -> None:
    plain_binary, plain_unary = builder.binary_op, builder.unary_op

    def binary(self: Any, left: Any, right: Any, operation: Any) -> Any:
        dtype = left.dtype.scalar
        if not _is_repaired(dtype):
            return plain_binary(self, left, right, operation)
        result = operation(_numbers(left), _numbers(right))
        return _handle(result, dtype) if result.dtype == np.bool_ else _rounded(result, dtype)

    def unary(self: Any, operand: Any, operation: Any) -> Any:
        dtype = operand.dtype.scalar
        if not _is_repaired(dtype):
            return plain_unary(self, operand, operation)
        return _rounded(operation(_numbers(operand)), dtype)

    builder.binary_op = binary
    builder.unary_op = unary


def _repair_dot(builder: Any) -> None:
    """Products of bfloat16, float16 and float8 are exact in float32; the sums are float32's, as a tensor core's are."""
    plain_dot = builder.create_dot

    def dot(self: Any, a: Any, b: Any, sums: Any, precision: Any, imprecise: Any) -> Any:
        kinds = {str(a.dtype.scalar), str(b.dtype.scalar)}
        if not kinds & (REPAIRED | {"fp16"}):
            return plain_dot(self, a, b, sums, precision, imprecise)
        result = np.matmul(_numbers(a), _numbers(b)) + sums.data
        return _handle(result.astype(sums.data.dtype), sums.dtype.scalar)

    builder.create_dot = dot


def _repair_reductions() -> None:
    operations = triton_interpreter.ReduceOps
    plain_apply = operations.apply_impl

    def apply(self: Any, inputs: Any) -> Any:
        if not (isinstance(inputs, tuple) and len(inputs) == 1 and _is_repaired(inputs[0].dtype.scalar)):
            return plain_apply(self, inputs)
        dtype = inputs[0].dtype.scalar
        result = plain_apply(self, (self.to_tensor(_numbers(inputs[0].handle), tl.float32),))
        parts = result if isinstance(result, (tuple, list)) else [result]
        rounded = [self.to_tensor(_rounded(part.handle.data, dtype).data, dtype) for part in parts]
        return type(result)(rounded) if isinstance(result, (tuple, list)) else rounded[0]

    operations.apply_impl = apply
