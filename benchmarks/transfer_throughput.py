"""How fast KV blocks move over the loopback device, from one process to another: prints one JSON object.

    python -m benchmarks.transfer_throughput [--blocks 400] [--rounds 3]

Each transport in turn, several times around, so that all meet the same noise: in the clear, under TLS 1.3,
and by NIXL over TCP (UCX_TLS and UCX_NET_DEVICES choose otherwise). The block
is the full model's in the float8 format: 62 layers of 41,984 bytes of latent records and 8,448 bytes of index keys, 3.1
MB. mb_per_s: payload of all blocks from the hello to the last acknowledgement, checksums on both sides included.
checksum_mb_per_s: CRC-32 alone, over a block's pieces. first_block_ms: from the start of a transfer to its first
acknowledgement. cpu_ms_per_block: of each side's process, system time included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from baleen.blocks import BlockHash
from baleen.tls_config import TlsConfig
from tests.support.certificates import Authority, tls_config
from workers.cache.block_bytes import BlockLayout, HostBlocks, address_of
from workers.transfer.nixl_payload import NixlPayload
from workers.transfer.protocol import checksum
from workers.transfer.tcp import TcpTransport
from workers.transfer.tls import Tls
from workers.transfer.transport import BlockPushed, Landing, LandingEnded, PushEnded, TransferNews

LAYOUT = BlockLayout("float8", 62, 64 * 656, 64 * 132)
MODEL = "00" * 16
WINDOW = 8
"""Blocks of memory on each side; they are used in turn, so that the working set is that of a small transfer."""

TIMEOUT_S = 120.0


class Memory(HostBlocks):
    """WINDOW blocks of zeros, as a `BlockBytes`."""

    layout = LAYOUT

    def __init__(self) -> None:
        self._blocks = [bytearray(LAYOUT.block_bytes) for _ in range(WINDOW)]

    def views(self, block_id: int) -> list[memoryview]:
        """See BlockBytes."""
        whole, pieces, start = memoryview(self._blocks[block_id % WINDOW]), [], 0
        for size in [LAYOUT.latent_bytes] * LAYOUT.num_layers + [LAYOUT.index_bytes] * LAYOUT.num_layers:
            pieces.append(whole[start : start + size])
            start += size
        return pieces

    def regions(self) -> list[tuple[int, int]]:
        """See BlockBytes."""
        return [(address_of(memoryview(block)), len(block)) for block in self._blocks]


def name_of(index: int) -> BlockHash:
    """Any name that both sides agree on."""
    return BlockHash(index.to_bytes(16, "little"))


def open_transport(config: TlsConfig, nixl: bool) -> TcpTransport:
    """One side of it."""
    memory = Memory()
    payload = NixlPayload(memory) if nixl else None
    return TcpTransport("127.0.0.1", memory, MODEL, tls=Tls.open(config), payload=payload)


def receive(rounds: int, blocks: int, config: TlsConfig, nixl: bool, pipe: Connection) -> None:
    """The receiving process: one landing per round, then its CPU time."""
    news: SimpleQueue[TransferNews] = SimpleQueue()
    transport = open_transport(config, nixl)
    transport.start(news.put)
    for number in range(rounds):
        names = tuple(name_of(index) for index in range(blocks))
        transport.expect(Landing(f"round-{number}", 0, tuple(range(blocks)), names, TIMEOUT_S))
    begin = time.process_time()
    pipe.send(transport.address)
    for _ in range(rounds):
        while not isinstance(ended := news.get(timeout=TIMEOUT_S), LandingEnded):
            pass
        assert ended.failure is None, ended.failure
    pipe.send(time.process_time() - begin)


def push(
    transport: TcpTransport, news: SimpleQueue[TransferNews], address: str, number: int, blocks: int
) -> list[float]:
    """One transfer; seconds until the first acknowledgement, and until the last."""
    begin = time.monotonic()
    transfer = transport.push(number, address, f"round-{number}", 0, blocks)
    for index in range(blocks):
        transfer.send(index, index, name_of(index))
    transfer.finish()
    times: list[float] = []
    while isinstance(told := news.get(timeout=TIMEOUT_S), BlockPushed):
        times.append(time.monotonic() - begin)
    assert isinstance(told, PushEnded) and told.failure is None, told
    return [times[0], times[-1]]


def checksum_speed() -> float:
    """Bytes per second of CRC-32 over the pieces of a block."""
    memory, rounds = Memory(), 50
    begin = time.monotonic()
    for block in range(rounds):
        checksum(memory.views(block))
    return rounds * LAYOUT.block_bytes / (time.monotonic() - begin)


def measure(config: TlsConfig, nixl: bool, rounds: int, blocks: int) -> dict[str, Any]:
    """Some transfers to a fresh process."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    peer = context.Process(target=receive, args=(rounds, blocks, config, nixl, there))
    peer.start()
    news: SimpleQueue[TransferNews] = SimpleQueue()
    transport = open_transport(config, nixl)
    transport.start(news.put)
    address = here.recv()
    begin = time.process_time()
    times = [push(transport, news, address, number, blocks) for number in range(rounds)]
    sender_cpu, receiver_cpu = time.process_time() - begin, here.recv()
    peer.join()
    transport.close()
    return {
        "transport": transport.name,
        "mb_per_s": [round(blocks * LAYOUT.block_bytes / last / 1e6) for _, last in times],
        "first_block_ms": round(1e3 * statistics.median(first for first, _ in times), 2),
        "cpu_ms_per_block": {
            "sender": round(1e3 * sender_cpu / (rounds * blocks), 3),
            "receiver": round(1e3 * receiver_cpu / (rounds * blocks), 3),
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # without shared memory, as between two machines
    os.environ.setdefault("UCX_TLS", "tcp,self")
    os.environ.setdefault("UCX_NET_DEVICES", "lo")
    with tempfile.TemporaryDirectory() as directory:
        tls = tls_config(Authority(Path(directory)), "rank", "127.0.0.1")
        kinds = [(TlsConfig(), False), (tls, False), (TlsConfig(), True)]
        turns = [measure(*kind, 1, arguments.blocks) for _ in range(arguments.rounds) for kind in kinds]
    result = {
        "block_bytes": LAYOUT.block_bytes,
        "blocks": arguments.blocks,
        "checksum_mb_per_s": round(checksum_speed() / 1e6),
        "turns": turns,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
