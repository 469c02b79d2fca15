"""What only transfers by NIXL have: peers of another transport, metadata, addresses, a sender that dies or stops."""

import multiprocessing
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Semaphore

import pytest
import torch

from baleen.errors import ConfigError
from tests.support.device_transfer import bytes_of, device_rank, move
from tests.support.models import make_golden_checkpoint
from tests.support.transfer import (
    LAYOUT,
    NIXL_ENVIRONMENT,
    TIMEOUT_S,
    Memory,
    RawSender,
    Side,
    cable,
    failure_of,
    landing,
)
from workers.cache.block_bytes import HostBlock
from workers.transfer.nixl_payload import NixlPayload, import_nixl
from workers.transfer.transport import BlockLanded, LandingEnded

pytestmark = pytest.mark.nixl

LENT = Memory(1, 5)
WAIT_S = 60.0
"""For a process that imports everything."""


@dataclass
class Elsewhere:
    """A payload of which only the words are at hand."""

    metadata: bytes
    words: bytes
    name = "nixl"

    def after_header(self, block):
        return [memoryview(self.words)]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in NIXL_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def make_side():
    with ExitStack() as stack:

        def make(**kwargs):
            side = Side(**{"nixl": True, **kwargs})
            stack.callback(side.transport.close)
            return side

        yield make


@pytest.mark.parametrize("nixl", [True, False])
def test_a_sender_of_another_transport_is_refused_and_both_are_named(make_side, nixl):
    sender, receiver = make_side(nixl=nixl), make_side(nixl=not nixl)
    receiver.transport.expect(landing("t", [0]))
    sender.push(receiver.transport.address, "t", [1])
    has, wants = ("nixl", "tcp") if nixl else ("tcp", "nixl")
    cause = (
        f"transports differ: sender {sender.transport.address} has {has}, "
        f"receiver {receiver.transport.address} has {wants}"
    )
    assert cause in failure_of(sender.news) and cause in receiver.lines.get(timeout=TIMEOUT_S)
    assert receiver.changed() == [] and receiver.transport.revoke("t"), "the ticket is not used up"


def test_addresses_that_the_sender_never_registered_are_not_read(make_side):
    receiver, own, stranger = make_side(), NixlPayload(Memory(1, 8)), Memory(1, 9)
    elsewhere = Elsewhere(own.metadata, bytes(own.after_header(HostBlock(stranger.views(0)))[0]))
    receiver.transport.expect(landing("t", [0]))
    with RawSender(receiver.transport.address, payload=elsewhere) as raw:
        raw.greet("t", 1)
        raw.send("t", 0, bytes(LAYOUT.block_bytes))
        assert raw.hung_up()
    ended = receiver.news.next()
    assert isinstance(ended, LandingEnded) and "cannot read the sender's memory" in ended.failure
    assert receiver.changed() == []


@pytest.mark.parametrize("metadata", [b"", b"rubbish" * 9])
def test_metadata_that_mean_nothing_end_the_landing(make_side, metadata):
    receiver = make_side()
    receiver.transport.expect(landing("t", [0]))
    with RawSender(receiver.transport.address, payload=Elsewhere(metadata, b"")) as raw:
        raw.greet("t", 1)
        assert raw.hung_up()
    ended = receiver.news.next()
    assert isinstance(ended, LandingEnded) and "metadata cannot be used" in ended.failure


@pytest.mark.parametrize("place", [400, 600, 800])
def test_metadata_that_were_damaged_on_the_way_never_reach_nixl(make_side, place):
    receiver, sender = make_side(), make_side()
    receiver.transport.expect(landing("t", [0]))
    with cable(receiver.transport.address, flip_at=place) as address:
        sender.push(address, "t", [1])
        assert failure_of(sender.news)
    assert receiver.transport.revoke("t"), "the ticket is not used up"


def test_transfers_between_the_same_two_follow_each_other(make_side):
    sender, receiver = make_side(seed=1), make_side(seed=2)
    for number in range(5):
        receiver.transport.expect(landing(f"t{number}", [number]))
        sender.push(receiver.transport.address, f"t{number}", [number])
        assert failure_of(sender.news) is None
        assert receiver.news.take(2) == [BlockLanded(f"t{number}", 0), LandingEnded(f"t{number}", None)]
        assert receiver.memory.blocks[number] == sender.memory.blocks[number]


def test_blocks_of_a_device_are_read_where_they_lie(tmp_path):
    """On a CPU, where a device's cache is beside the memory that its blocks pass through all the same."""
    pytest.importorskip("triton", reason="triton is not installed on this platform")
    directory = make_golden_checkpoint("dev_bf16.golden", tmp_path / "model")
    prefill, decode = (device_rank(directory, torch.device("cpu"), "float8", nixl=True) for _ in range(2))
    prompt = list(range(10, 150))
    assert move(prefill, decode, prompt)[1] is None
    assert bytes_of(prefill, prompt) == bytes_of(decode, prompt) != []
    prefill.transport.close()
    decode.transport.close()


@pytest.mark.parametrize("what_then", [signal.SIGCONT, signal.SIGKILL])
def test_a_sender_that_stopped_holds_the_blocks_until_it_goes_on_or_dies(make_side, what_then):
    """What is still read may come at any time, so the end is told only when nothing can."""
    receiver = make_side()
    receiver.transport.expect(landing("t", [0]))
    looks, agent = Semaphore(0), receiver.payload._agent
    look = agent.check_xfer_state
    agent.check_xfer_state = lambda transfer: (looks.release(), look(transfer))[1]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_lend, args=(there,), daemon=True)
    child.start()
    try:
        assert here.poll(WAIT_S)
        elsewhere = Elsewhere(*here.recv())
        os.kill(child.pid, signal.SIGSTOP)
        with RawSender(receiver.transport.address, payload=elsewhere) as raw:
            raw.greet("t", 1)
            raw.send("t", 0, bytes(LENT.blocks[0]))
            assert looks.acquire(timeout=TIMEOUT_S)
            assert not receiver.transport.revoke("t")
            assert raw.hung_up()
            for _ in range(200):
                assert looks.acquire(timeout=TIMEOUT_S), "it still waits for the read"
            assert receiver.news.silent and not receiver.transport.revoke("t")
        os.kill(child.pid, what_then)
        ended = receiver.news.next()
    finally:
        child.kill()
        child.join(TIMEOUT_S)
    assert isinstance(ended, LandingEnded) and ended.failure
    assert receiver.transport.revoke("t"), "nobody writes any more"


def _lend(pipe):
    """A process that does nothing but what NIXL does by itself."""
    payload = NixlPayload(LENT)
    pipe.send((payload.metadata, bytes(payload.after_header(HostBlock(LENT.views(0)))[0])))
    pipe.recv()


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nixl_cu12", None)
    with pytest.raises(ConfigError, match=r"transfer\.transport is 'nixl'.*pip install"):
        import_nixl()
