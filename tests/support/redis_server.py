"""Real Redis-compatible servers for tests, and ranks to announce in them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from baleen.blocks import BLOCK_TOKENS, BlockHash, chain_hashes, root_hash
from baleen.ids import Epoch, Incarnation
from baleen.reports import RankInfo
from cluster.embedded import bundled_server

ROOT = root_hash(b"model", b"tenant")


def server_programs() -> list[Path]:
    """The server that is installed with the package, and those on the PATH."""
    found = [shutil.which(name) for name in ("valkey-server", "redis-server")]
    return [bundled_server(), *(Path(path) for path in found if path)]


def rank_info(name: str, **changes: object) -> RankInfo:
    """A rank of the decode pool whose incarnation is `name`."""
    fields: dict[str, object] = {
        "incarnation": Incarnation(name),
        "epoch": Epoch("epoch"),
        "rank": 0,
        "world_size": 1,
        "role": "decode",
        "pool": "decode",
        "group": "decode-0",
        "address": "127.0.0.1:1",
        "model_fingerprint": "00" * 16,
        "vocab_size": 256,
        "max_context": 4096,
        "eos_token_ids": (1, 2),
        "num_blocks": 64,
        "max_running": 8,
        "pid": 1,
    }
    return RankInfo(**{**fields, **changes})  # type: ignore[arg-type]


def chain(num_blocks: int, *, first_token: int = 0) -> list[BlockHash]:
    """Hashes of a prompt of whole blocks; another first token is another prompt from its first block on."""
    tokens = [first_token] + [7] * (num_blocks * BLOCK_TOKENS - 1)
    return chain_hashes(ROOT, tokens)


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Until `condition()`, of something in another process that tells nobody when it changes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)
