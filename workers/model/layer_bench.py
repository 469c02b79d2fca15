"""One decoder layer of DeepSeek-V3.2's real sizes on a GPU, timed operation by operation with random numbers.

The whole of a step with one layer is timed, and beside it each operation of the table, by events around its calls while
the device has work queued, so that the host's time is not in it. What is left is torch's between the operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any

import numpy as np
import torch

from baleen.blocks import BLOCK_TOKENS
from baleen.config import CacheDtype
from baleen.model_spec import ModelSpec
from kernels.dispatch import Operations
from workers.cache.device_tensors import DeviceCache
from workers.model.device_batch import DeviceBatch, build_host_batch
from workers.model.device_experts import experts_over
from workers.model.device_weights import DeviceWeights, allocate_device_weights
from workers.model.forward import Piece
from workers.model.sizes import official_dtypes
from workers.parallel.local import LocalExchange
from workers.staging import Staging

VOCAB = 1024
"""Of the table and the head, which are no part of a layer."""

RUNS = 20
QUEUE_CYCLES = 20_000_000
"""What the device is kept busy with while the host queues a step."""

_PIECE = 1 << 24


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One step: `num_sequences` of `new_tokens` each, the last of which sees `context` keys."""

    name: str
    num_sequences: int
    new_tokens: int
    context: int


SHAPES = (
    LayerShape("decode, 1 x 8K", 1, 1, 8192),
    LayerShape("decode, 64 x 8K", 64, 1, 8192),
    LayerShape("decode, 16 x 64K", 16, 1, 65536),
    LayerShape("prefill, 2048 of 2K", 1, 2048, 2048),
    LayerShape("prefill, 2048 of 32K", 1, 2048, 32768),
)


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Medians in microseconds: the whole step, and each operation's calls of it together."""

    shape: LayerShape
    total_us: float
    operations_us: dict[str, float]

    @property
    def other_us(self) -> float:
        """What no operation of the table accounts for."""
        return self.total_us - sum(self.operations_us.values())


def layer_spec(spec: ModelSpec, num_experts: int) -> ModelSpec:
    """`spec` with one layer, which is of experts, and so many of them."""
    return replace(
        spec, num_layers=1, first_dense_layers=0, num_mtp_layers=0, num_experts=num_experts, vocab_size=VOCAB
    )


def random_weights(spec: ModelSpec, device: torch.device) -> DeviceWeights:
    """Weights of `spec` in the published formats, random, of a size that keeps activations near 1."""
    weights, places = allocate_device_weights(
        spec, official_dtypes(spec), local_experts=range(spec.num_experts), device=device, fingerprint=b"random"
    )
    for name, parts in places.items():
        for part in parts:
            if name.endswith("weight_scale_inv"):
                # float8 numbers of standard deviation 1 times this: about the inverse root of the width
                part.fill_(2.0**-6)
                continue
            flat = part.view(-1)
            spread = 1.0 if part.dtype == torch.float8_e4m3fn else 0.02
            for start in range(0, flat.numel(), _PIECE):
                size = min(_PIECE, flat.numel() - start)
                flat[start : start + size].copy_(torch.randn(size, device=device) * spread)
    return weights


class Recorder:
    """Wraps a table of operations, and adds up what `stamp` says of the time before and after each call."""

    def __init__(self, stamp: Callable[[], Any], elapsed_us: Callable[[Any, Any], float]) -> None:
        self._stamp = stamp
        self._elapsed_us = elapsed_us
        self._marks: list[tuple[str, Any, Any]] = []

    def wrap(self, operations: Operations) -> Operations:
        """The same table, recorded."""
        return Operations(
            **{field.name: self._recorded(field.name, getattr(operations, field.name)) for field in fields(operations)}
        )

    def _recorded(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            begin = self._stamp()
            result = operation(*arguments, **named)
            self._marks.append((name, begin, self._stamp()))
            return result

        return call

    def take(self) -> dict[str, float]:
        """Microseconds by operation since the last call."""
        found: dict[str, float] = {}
        for name, begin, end in self._marks:
            found[name] = found.get(name, 0.0) + self._elapsed_us(begin, end)
        self._marks.clear()
        return found


class LayerBench:
    """A model of one layer with its cache on a device, ready to be timed."""

    def __init__(self, spec: ModelSpec, operations: Operations, device: torch.device, cache_dtype: CacheDtype) -> None:
        """Allocates and fills weights of `spec`, which `layer_spec` made."""
        self.spec = spec
        self._device = device
        self._cache_dtype = cache_dtype
        self._weights = random_weights(spec, device)
        self._operations = operations
        self._recorder = Recorder(_event, lambda begin, end: float(begin.elapsed_time(end)) * 1e3)

    def measure(self, shape: LayerShape) -> LayerTime:
        """Medians of `RUNS` steps after some that compile and warm up."""
        step, cache = self._prepare(shape)
        totals, parts = [], []
        with self._model(cache, self._operations) as plain:
            plain(step)
            totals = [self._run(plain, step) for _ in range(RUNS)]
        with self._model(cache, self._recorder.wrap(self._operations)) as recorded:
            recorded(step)
            torch.cuda.synchronize()
            self._recorder.take()
            for _ in range(RUNS):
                self._run(recorded, step)
                parts.append(self._recorder.take())
        names = parts[0].keys()
        return LayerTime(shape, median(totals), {name: median(part[name] for part in parts) for name in names})

    def _run(self, forward: Callable[[DeviceBatch], torch.Tensor], step: DeviceBatch) -> float:
        torch.cuda._sleep(QUEUE_CYCLES)
        begin = _event()
        forward(step)
        end = _event()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e3

    @contextmanager
    def _model(self, cache: DeviceCache, operations: Operations) -> Iterator[Callable[[DeviceBatch], torch.Tensor]]:
        from workers.model.device_model import DeviceModel

        experts = experts_over(LocalExchange(self.spec.num_experts), operations)
        yield DeviceModel(self._weights, cache, experts, operations).forward

    def _prepare(self, shape: LayerShape) -> tuple[DeviceBatch, DeviceCache]:
        """A step of `shape` over a cache of random records."""
        blocks = -(-shape.context // BLOCK_TOKENS)
        cache = DeviceCache(self.spec, blocks * shape.num_sequences, self._cache_dtype, self._device)
        fill_cache(cache)
        return shape_batch(shape, self.spec, Staging(self._device)), cache


def shape_batch(shape: LayerShape, spec: ModelSpec, staging: Staging) -> DeviceBatch:
    """The inputs of a step; blocks of the sequences in a random order."""
    random = np.random.RandomState(0)
    blocks = -(-shape.context // BLOCK_TOKENS)
    table = random.permutation(blocks * shape.num_sequences).reshape(shape.num_sequences, blocks).astype(np.int64)
    pieces = [
        Piece(
            random.randint(0, spec.vocab_size, shape.new_tokens).tolist(),
            shape.context - shape.new_tokens,
            row,
            samples=True,
        )
        for row in range(shape.num_sequences)
    ]
    host = build_host_batch(pieces, table)
    return host.on(staging.upload(host.arrays))


def fill_cache(cache: DeviceCache) -> None:
    """Random records and keys: finite, and of scales near 1."""
    for tensor in (*cache.latent, *cache.index):
        if tensor.dtype == torch.bfloat16:
            tensor.normal_()
            continue
        # bytes 0x30 to 0x3f: float8 from 0.5 to 2, float32 near 1e-9 and bfloat16 near 1e-4, all of them finite
        tensor.random_(0x30, 0x40)


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def table_of(times: Sequence[LayerTime], spec: ModelSpec, num_layers: int) -> str:
    """The times for reading, with the extrapolation and what it takes for granted."""
    lines = []
    for time in times:
        lines.append(f"{time.shape.name}: {time.total_us:,.0f} us a layer, {num_layers} layers {_ms(time, num_layers)}")
        parts = sorted(time.operations_us.items(), key=lambda part: -part[1])
        lines += [f"  {name:<24}{us:>12,.1f} us" for name, us in (*parts, ("other", time.other_us))]
    lines.append(
        f"one layer with {spec.num_experts} experts, all on this device, random numbers; {num_layers} layers are "
        f"{num_layers} times this one: dense layers counted as such, no exchange between ranks, no embedding and head"
    )
    return "".join(f"{line}\n" for line in lines)


def _ms(time: LayerTime, num_layers: int) -> str:
    return f"{time.total_us * num_layers / 1e3:,.2f} ms"
