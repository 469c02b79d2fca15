"""An open checkpoint: its config, its shards' headers, and reading one tensor by name. Nothing is ever unpickled."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from baleen.errors import CheckpointError
from baleen.model_spec import ModelSpec, load_model_spec

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_LISTED_PROBLEMS = 20

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# A zip archive (what torch.save writes) and the first bytes of pickle protocols 2 to 5.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a shard's header says about one tensor. dtype: safetensors' name of it, such as F8_E4M3."""

    shard: str
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """A checkpoint whose headers were read and agree with its index. A context manager: `close` lets the files go."""

    def __init__(
        self,
        directory: Path,
        spec: ModelSpec,
        shards: Mapping[str, Any],
        tensors: Mapping[str, StoredTensor],
        files: ExitStack,
        open_s: float,
    ) -> None:
        self.directory = directory
        self.spec = spec
        self.tensors = MappingProxyType(dict(tensors))
        self.open_s = open_s
        self._shards = dict(shards)
        self._files = files

    @classmethod
    def open(cls, directory: Path | str) -> Checkpoint:
        """Open `directory`: config.json, and a safetensors index with its shards or one model.safetensors.

        Each shard is opened once and mapped, so that reading a tensor later touches that tensor's bytes only. Raises
        CheckpointError that names the file or tensor, what was expected and what was found.
        """
        begin = time.perf_counter()
        directory = Path(directory)
        spec = load_model_spec(directory)
        placed = _read_index(directory)
        with ExitStack() as files:
            names = sorted(set(placed.values())) if placed is not None else [SINGLE_NAME]
            shards = {name: files.enter_context(_open_shard(directory / name)) for name in names}
            tensors, problems = _read_headers(shards, placed)
            if problems:
                raise problems_error(directory, problems)
            return cls(directory, spec, shards, tensors, files.pop_all(), time.perf_counter() - begin)

    @property
    def shard_names(self) -> tuple[str, ...]:
        """File names of the shards, sorted."""
        return tuple(self._shards)

    @property
    def num_file_bytes(self) -> int:
        """Bytes of all shards on disk, headers included."""
        return sum((self.directory / name).stat().st_size for name in self._shards)

    def names_in_file_order(self) -> Iterator[str]:
        """Tensor names, shard by shard and by place in the shard: the order in which a disk likes to be read."""
        for shard in self._shards.values():
            yield from shard.offset_keys()

    def read(self, name: str) -> torch.Tensor:
        """The stored tensor in its stored dtype: a view of the mapped file, so copy what outlives the checkpoint."""
        shard = self.tensors[name].shard
        try:
            tensor: torch.Tensor = self._shards[shard].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self.directory / shard}: {name} cannot be read: {error}") from error
        return tensor

    def close(self) -> None:
        """Let the files go; tensors that were read and not copied keep theirs mapped."""
        self._shards.clear()
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def problems_error(directory: Path, problems: Sequence[str]) -> CheckpointError:
    """One error for all problems of a checkpoint: the first ones in full, the others counted."""
    assert problems
    if len(problems) == 1:
        return CheckpointError(f"{directory}: {problems[0]}")
    lines = [f"{directory}: {len(problems)} problems", *problems[:MAX_LISTED_PROBLEMS]]
    if len(problems) > MAX_LISTED_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_LISTED_PROBLEMS} more")
    return CheckpointError("\n  ".join(lines))


def _read_index(directory: Path) -> dict[str, str] | None:
    """Tensor name to shard name, or None where the checkpoint is one file without an index."""
    path = directory / INDEX_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (directory / SINGLE_NAME).exists():
            return None
        raise CheckpointError(_no_weights(directory)) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    placed = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(f"{path}: weight_map must be a filled object of tensor name to file name")
    for tensor, shard in placed.items():
        if Path(shard).suffix in _PICKLE_SUFFIXES:
            raise CheckpointError(f"{path}: {tensor} is in {shard}, a pickle file; {_WHY_NO_PICKLE}")
        if shard != Path(shard).name or Path(shard).suffix != ".safetensors":
            raise CheckpointError(f"{path}: {tensor} is in {shard!r}, must be a .safetensors file of this directory")
    return placed


_WHY_NO_PICKLE = "unpickling runs code from the file, so only safetensors are read: convert the checkpoint first"


def _no_weights(directory: Path) -> str:
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    if pickles:
        return f"{directory}: weights are in pickle files ({', '.join(pickles[:3])}); {_WHY_NO_PICKLE}"
    return f"{directory}: neither {INDEX_NAME} nor {SINGLE_NAME} found"


def _open_shard(path: Path) -> Any:
    # safetensors' own types are incomplete, hence Any for its handles.
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found, the index lists it") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {_what_is_wrong(path)} ({error})") from error


def _what_is_wrong(path: Path) -> str:
    """Say why a file is no whole safetensors file: 8 bytes of header length, a JSON header, then the data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_PICKLE_STARTS):
            return f"a pickle or zip file, expected safetensors; {_WHY_NO_PICKLE}"
        header_bytes = int.from_bytes(start, "little")
        if len(start) < 8:
            return f"not a safetensors file or truncated: {size} bytes, expected at least 8"
        if header_bytes > size - 8:
            return f"not a safetensors file or truncated: {size} bytes, expected a header of {header_bytes}"
        header = file.read(header_bytes)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        expected = 8 + header_bytes + max(ends, default=0)
    except (ValueError, RecursionError, TypeError, AttributeError, LookupError):
        return "not a safetensors file: its header is no JSON table of tensors"
    if size < expected:
        return f"truncated: {size} bytes, its header expects {expected}"
    return f"damaged: {size} bytes, its header expects {expected}"


def _read_headers(
    shards: Mapping[str, Any], placed: Mapping[str, str] | None
) -> tuple[dict[str, StoredTensor], list[str]]:
    """All tensors by name, and every disagreement between index and shards."""
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for shard, file in shards.items():
        for name in file.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
            if placed is not None and placed.get(name) != shard:
                where = f"the index places it in {placed[name]}" if name in placed else "the index does not list it"
                problems.append(f"{name}: found in {shard}, {where}")
                continue
            part = file.get_slice(name)
            tensors[name] = StoredTensor(shard, tuple(part.get_shape()), str(part.get_dtype()))
    for name, shard in (placed or {}).items():
        if name not in tensors:
            problems.append(f"{name}: not found in {shard}, where the index places it")
    return tensors, problems
