"""What every transport keeps: blocks arrive as they were or not at all, and every transfer ends with news of it."""

import socket
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.support.certificates import Authority, tls_config
from tests.support.transfer import (
    IDENTITY,
    LAYOUT,
    MODEL,
    NIXL_ENVIRONMENT,
    RawSender,
    Side,
    cable,
    failure_of,
    landing,
    name_of,
)
from workers.cache.block_bytes import HostBlock
from workers.transfer.protocol import BLOCK_HEADER_BYTES, AckStatus
from workers.transfer.tls import Tls
from workers.transfer.transport import BlockLanded, BlockPushed, LandingEnded, PushEnded


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """TLS of the ranks of a cluster, whose certificates carry the address."""
    directory = tmp_path_factory.mktemp("certificates")
    return Tls.open(tls_config(Authority(directory), "rank", "127.0.0.1"))


@pytest.fixture(params=["tcp", "tcp+tls", pytest.param("nixl", marks=pytest.mark.nixl)])
def way(request, certified, monkeypatch):
    """How both sides, and raw peers, speak."""
    if request.param != "nixl":
        return {"tls": certified if request.param == "tcp+tls" else None}
    for name, value in NIXL_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return {"nixl": True}


@pytest.fixture
def make_side(way):
    """Makes more sides, and closes them."""
    with ExitStack() as stack:

        def make(*args, **kwargs):
            side = Side(*args, **{**way, **kwargs})
            stack.callback(side.transport.close)
            return side

        yield make


@pytest.fixture
def sender(make_side):
    return make_side(seed=1)


@pytest.fixture
def receiver(make_side):
    return make_side(seed=2)


@pytest.fixture
def connect(receiver, way):
    """Opens raw connections to the receiver, and closes them."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(RawSender(receiver.transport.address, **way))


def landed(ticket, *indexes):
    return [BlockLanded(ticket, index) for index in indexes]


def test_blocks_arrive_where_they_were_expected_and_nowhere_else(sender, receiver):
    receiver.transport.expect(landing("t", [5, 0, 3], first_block=7))
    sender.push(receiver.transport.address, "t", [2, 4, 1], first_block=7)
    assert sender.news.take(4) == [BlockPushed(1)] * 3 + [PushEnded(1, None)]
    assert receiver.news.take(4) == [*landed("t", 7, 8, 9), LandingEnded("t", None)]
    for source, target in ((2, 5), (4, 0), (1, 3)):
        assert receiver.memory.blocks[target] == sender.memory.blocks[source]
    assert receiver.changed() == [0, 3, 5] and sender.changed() == []


def test_a_block_leaves_as_soon_as_it_is_given(sender, receiver):
    receiver.transport.expect(landing("t", [0, 1]))
    push = sender.transport.push(9, receiver.transport.address, "t", 0, 2)
    for index in range(2):
        assert sender.news.silent
        push.send(index, index, name_of(index))
        assert receiver.news.next() == BlockLanded("t", index)
        assert sender.news.next() == BlockPushed(9)
    push.finish()
    assert sender.news.next() == PushEnded(9, None)


def test_more_blocks_than_the_window_arrive_in_order(make_side):
    wide, receiver = make_side(40, seed=3), make_side(40, seed=4)
    receiver.transport.expect(landing("t", list(range(39, -1, -1))))
    wide.push(receiver.transport.address, "t", list(range(40)))
    assert receiver.news.take(40) == landed("t", *range(40))
    assert receiver.memory.blocks == wide.memory.blocks[::-1]


@pytest.mark.parametrize("part", [0, 0.2, 0.5, 0.8, 0.999])
def test_a_flipped_bit_lands_nothing_and_both_sides_hear_of_it(sender, receiver, part, way):
    """At some part of the first block's message."""
    receiver.transport.expect(landing("t", [0, 1]))
    hello, block = _bytes_said(sender)
    with cable(receiver.transport.address, flip_at=hello + int(part * block)) as address:
        sender.push(address, "t", [0, 1])
        assert failure_of(sender.news)
    # under TLS it is the handshake that fails, before the ticket is known
    if not way.get("tls") or not receiver.transport.revoke("t"):
        ended = receiver.news.next()
        assert isinstance(ended, LandingEnded) and ended.failure


@pytest.mark.parametrize("part", [0.001, 0.01, 0.05, 0.1, 0.3, 0.6, 0.8, 0.97])
def test_a_connection_cut_at_any_byte_lands_whole_blocks_only(sender, receiver, part):
    receiver.transport.expect(landing("t", [0, 1]))
    hello, block = _bytes_said(sender)
    with cable(receiver.transport.address, cut_at=1 + int(part * (hello + 2 * block))) as address:
        sender.push(address, "t", [4, 5])
        assert failure_of(sender.news)
    # a connection that was cut before its ticket was known has used up nothing
    if not receiver.transport.revoke("t") or not receiver.news.silent:
        news = receiver.news.next()
        while isinstance(news, BlockLanded):
            assert receiver.memory.blocks[news.index] == sender.memory.blocks[4 + news.index]
            news = receiver.news.next()
        assert isinstance(news, LandingEnded)


def test_another_model_is_refused_and_both_sides_are_named(sender, receiver, make_side):
    other = make_side(model="cd" * 16)
    receiver.transport.expect(landing("t", [0]))
    other.push(receiver.transport.address, "t", [0])
    failure = failure_of(other.news)
    for part in (MODEL, "cd" * 16, other.transport.address, receiver.transport.address):
        assert part in failure
    # the ticket is still good for the right one
    sender.push(receiver.transport.address, "t", [0])
    assert receiver.news.next() == BlockLanded("t", 0)


def test_another_layout_is_refused(make_side, receiver):
    other = make_side(layout=replace(LAYOUT, record_format="other numbers"))
    receiver.transport.expect(landing("t", [0]))
    other.push(receiver.transport.address, "t", [0])
    failure = failure_of(other.news)
    assert "other numbers" in failure and "test numbers" in failure
    assert receiver.changed() == []


def test_an_unknown_ticket_is_refused(sender, receiver):
    receiver.transport.expect(landing("t", [0]))
    sender.push(receiver.transport.address, "guess", [0])
    assert "no such ticket" in failure_of(sender.news)
    assert receiver.changed() == []


def test_a_ticket_serves_one_connection(sender, receiver, connect):
    receiver.transport.expect(landing("t", [0, 1]))
    first = connect()
    assert first.greet("t", 2).refusal == ""
    sender.push(receiver.transport.address, "t", [0, 1])
    assert "before" in failure_of(sender.news) and receiver.transport.counts.fenced == 1
    first.send("t", 0, bytes(sender.memory.blocks[0]))
    assert first.ack() == (0, AckStatus.LANDED)
    first.sock.shutdown(socket.SHUT_RDWR)
    assert receiver.news.next() == BlockLanded("t", 0)
    assert isinstance(receiver.news.next(), LandingEnded)
    sender.push(receiver.transport.address, "t", [0, 1])
    assert "no such ticket" in failure_of(sender.news)


def test_a_block_that_comes_twice_is_not_written_again(sender, receiver, connect):
    receiver.transport.expect(landing("t", [0, 1]))
    raw = connect()
    raw.greet("t", 2)
    raw.send("t", 0, bytes(sender.memory.blocks[0]))
    assert raw.ack() == (0, AckStatus.LANDED)
    raw.send("t", 0, bytes(sender.memory.blocks[5]))
    assert raw.ack() == (0, AckStatus.DUPLICATE)
    raw.send("t", 1, bytes(sender.memory.blocks[1]))
    assert raw.ack() == (1, AckStatus.LANDED)
    assert receiver.news.take(3) == [*landed("t", 0, 1), LandingEnded("t", None)]
    assert receiver.memory.blocks[:2] == sender.memory.blocks[:2]


@pytest.mark.parametrize(
    ("index", "changed"),
    [
        (1, {}),
        (9, {}),
        (0, {"identity": b"x" * 16}),
        (0, {"ticket": b"x" * 16}),
        (0, {"block_hash": b"x" * 16}),
        (0, {"num_bytes": 10}),
        (0, {"num_bytes": 1 << 40}),
        (0, {"checksum": 5}),
    ],
)
def test_a_block_whose_header_is_wrong_does_not_land(sender, receiver, index, changed, connect):
    receiver.transport.expect(landing("t", [0, 1]))
    raw = connect()
    raw.greet("t", 2)
    raw.send("t", index, bytes(sender.memory.blocks[0]), **changed)
    if "checksum" in changed:
        assert raw.ack() == (0, AckStatus.DAMAGED)
    assert raw.hung_up()
    ended = receiver.news.next()
    assert isinstance(ended, LandingEnded) and f"block {index}" in ended.failure
    assert receiver.transport.counts.damaged == ("checksum" in changed)
    if "checksum" not in changed:
        assert receiver.changed() == []


def test_more_or_other_blocks_than_reserved_are_refused(sender, receiver, connect):
    receiver.transport.expect(landing("t", [0, 1], first_block=3))
    assert "expects 2 blocks from block 3" in connect().greet("t", 2, 2).refusal
    assert "expects 2 blocks from block 3" in connect().greet("t", 3, 3).refusal


def test_nothing_lands_after_a_ticket_was_revoked(sender, receiver):
    receiver.transport.expect(landing("t", [0, 1]))
    assert receiver.transport.revoke("t")
    sender.push(receiver.transport.address, "t", [0, 1])
    assert "no such ticket" in failure_of(sender.news)
    assert receiver.changed() == [] and receiver.news.silent
    assert receiver.transport.counts.fenced == 1


def test_revoking_cuts_a_transfer_and_its_end_is_told(sender, receiver, connect):
    receiver.transport.expect(landing("t", [0, 1]))
    raw = connect()
    raw.greet("t", 2)
    raw.sock.sendall(b"BLNK half a header")
    assert not receiver.transport.revoke("t")
    ended = receiver.news.next()
    assert isinstance(ended, LandingEnded) and ended.failure
    assert receiver.transport.revoke("t"), "nobody writes any more"
    assert raw.hung_up()


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"BLNK\x07\x00\x00\x00\x00\x00", b"\x00" * 99])
def test_strangers_are_hung_up_on(receiver, words, connect):
    raw = connect()
    raw.sock.sendall(words)
    assert raw.hung_up()


def test_a_push_to_nobody_fails(sender):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    sender.push(address, "t", [0])
    assert address in failure_of(sender.news)


def test_a_push_to_someone_silent_can_be_cancelled(sender):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        push = sender.push(f"127.0.0.1:{silent.getsockname()[1]}", "t", [0])
        with silent.accept()[0]:
            push.cancel("the client has gone")
            assert sender.news.next() == PushEnded(1, "the client has gone")


def test_a_push_that_cannot_connect_can_be_cancelled(sender):
    """Nobody accepts and the queue is full, so that the connection is never made."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        push = sender.push(f"127.0.0.1:{full.getsockname()[1]}", "t", [0])
        push.cancel("the client has gone")
        assert sender.news.next() == PushEnded(1, "the client has gone")
        for sock in waiting:
            sock.close()


def test_a_push_that_waits_for_blocks_can_be_cancelled(sender, receiver):
    receiver.transport.expect(landing("t", [0, 1]))
    push = sender.transport.push(4, receiver.transport.address, "t", 0, 2)
    push.send(0, 0, name_of(0))
    assert sender.news.next() == BlockPushed(4)
    push.cancel("aborted")
    assert sender.news.next() == PushEnded(4, "aborted")
    assert receiver.news.next() == BlockLanded("t", 0)
    assert isinstance(receiver.news.next(), LandingEnded)


def test_closing_cuts_what_runs(receiver, connect):
    receiver.transport.expect(landing("t", [0]))
    raw = connect()
    raw.greet("t", 1)
    receiver.transport.close()
    assert isinstance(receiver.news.next(), LandingEnded)
    assert raw.hung_up()
    with pytest.raises(OSError):
        connect()


def _bytes_said(sender):
    """Of the sender's hello for the ticket `t` and two blocks, and of each block."""
    from workers.transfer import protocol

    class Sink:
        def __init__(self):
            self.data = b""

        def sendall(self, data):
            self.data += data

    sink = Sink()
    payload = sender.payload
    hello = protocol.Hello(sender.transport.address, IDENTITY, "t", 0, 2, payload.name, payload.metadata)
    protocol.send_hello(sink, hello)
    return len(sink.data), BLOCK_HEADER_BYTES + sum(map(len, payload.after_header(HostBlock(sender.memory.views(0)))))
