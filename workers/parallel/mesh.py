"""Connecting every pair of ranks: two TCP connections each, authenticated by epoch and incarnation.

A rank dials all lower ranks and is dialled by all higher ones. Both sides say hello with their own incarnation and
the one they mean to talk to, which only members of this epoch know, so that strangers and older lives are turned away.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from baleen.clock import Clock
from baleen.errors import EpochEnded
from baleen.ids import Incarnation
from workers.parallel.membership import name_ranks
from workers.parallel.messages import Hello, MalformedMessage, decode, encode

LANES = ("control", "step")
_MAX_HELLO_BYTES = 1024
_STRANGER_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Member:
    """Where one rank of the epoch listens."""

    rank: int
    host: str
    port: int
    incarnation: Incarnation


@dataclass(slots=True)
class Mesh:
    """Connected sockets by lane and rank."""

    control: dict[int, socket.socket] = field(default_factory=dict)
    step: dict[int, socket.socket] = field(default_factory=dict)

    def lane(self, name: str) -> dict[int, socket.socket]:
        """The sockets of one of `LANES`."""
        return self.control if name == "control" else self.step

    def close(self) -> None:
        """Close all."""
        for sock in (*self.control.values(), *self.step.values()):
            sock.close()


def listen(host: str, world_size: int) -> socket.socket:
    """A listening socket on a free port of `host`. Raises OSError."""
    return socket.create_server((host, 0), backlog=2 * world_size + 8)


def connect_mesh(
    own: Member, members: Mapping[int, Member], epoch: str, listener: socket.socket, *, deadline: float, clock: Clock
) -> Mesh:
    """Connect to all other members before `deadline`. Raises EpochEnded that names a rank that cannot be reached."""
    mesh = Mesh()
    try:
        for rank in range(own.rank):
            for lane in LANES:
                mesh.lane(lane)[rank] = _dial(own, members[rank], epoch, lane, deadline - clock.now())
        while missing := [r for r in members if r > own.rank and not (r in mesh.control and r in mesh.step)]:
            remaining_s = deadline - clock.now()
            if remaining_s <= 0:
                raise EpochEnded(f"{name_ranks(missing)} did not connect to rank {own.rank} in time")
            _accept(own, members, epoch, listener, mesh, remaining_s)
    except BaseException:
        mesh.close()
        raise
    return mesh


def _dial(own: Member, member: Member, epoch: str, lane: str, timeout_s: float) -> socket.socket:
    where = f"rank {member.rank} at {member.host}:{member.port}"
    try:
        sock = socket.create_connection((member.host, member.port), timeout=max(0.001, timeout_s))
    except OSError as error:
        raise EpochEnded(f"{where} cannot be reached: {error}") from error
    try:
        _prepare(sock)
        sock.sendall(encode(Hello(epoch, own.rank, own.incarnation, member.incarnation, lane)))
        if _read_hello(sock) != Hello(epoch, member.rank, member.incarnation, own.incarnation, lane):
            raise MalformedMessage("its hello is not the one of this epoch")
    except (OSError, MalformedMessage) as error:
        sock.close()
        raise EpochEnded(f"{where} did not answer the hello of rank {own.rank}: {error}") from error
    return sock


def _accept(
    own: Member, members: Mapping[int, Member], epoch: str, listener: socket.socket, mesh: Mesh, timeout_s: float
) -> None:
    """Take one connection; a stranger's is closed, which leaves the mesh as it was."""
    listener.settimeout(timeout_s)
    try:
        sock, _ = listener.accept()
    except TimeoutError:
        return
    try:
        _prepare(sock)
        sock.settimeout(min(_STRANGER_TIMEOUT_S, timeout_s))
        hello = _read_hello(sock)
        member = members.get(hello.rank)
        known = member is not None and member.rank > own.rank and hello.incarnation == member.incarnation
        meant = hello.epoch == epoch and hello.to_incarnation == own.incarnation and hello.lane in LANES
        if not (known and meant) or hello.rank in mesh.lane(hello.lane):
            raise MalformedMessage("a stranger")
        sock.sendall(encode(Hello(epoch, own.rank, own.incarnation, hello.incarnation, hello.lane)))
    except (OSError, MalformedMessage):
        sock.close()
        return
    mesh.lane(hello.lane)[hello.rank] = sock


def _prepare(sock: socket.socket) -> None:
    # Words and heartbeats are far smaller than a packet: Nagle's algorithm would hold them back.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _read_hello(sock: socket.socket) -> Hello:
    """Read one line and not a byte more, since other messages may follow it at once."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            raise MalformedMessage("the connection ended before a hello")
        line += byte
        if len(line) > _MAX_HELLO_BYTES:
            raise MalformedMessage("a hello without end")
    hello = decode(bytes(line))
    if not isinstance(hello, Hello):
        raise MalformedMessage("not a hello")
    return hello
