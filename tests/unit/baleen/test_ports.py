"""A port that is handed over: who takes over gets all new connections, and nobody else can listen there by accident."""

import asyncio
import socket

import grpc.aio
import pytest

from baleen import ports
from baleen.wire.channel import SHARING_SERVER_OPTIONS


def accepted(listener):
    """How many connections wait at it, which are then taken."""
    listener.setblocking(False)
    found = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return found
        found += 1


@pytest.fixture
def first():
    with ports.listener("127.0.0.1:0", takes_over=False) as found:
        yield found


def connect(name, count=20):
    for _ in range(count):
        socket.create_connection(name).close()


def test_the_successor_gets_all_new_connections_and_so_does_its_own(first):
    name = first.getsockname()
    address = f"127.0.0.1:{name[1]}"
    connect(name)
    with ports.listener(address, takes_over=True) as second:
        connect(name)
        assert (accepted(first), accepted(second)) == (20, 20)
        first.close()
        connect(name)
        assert accepted(second) == 20
        with ports.listener(address, takes_over=True) as third:
            connect(name)
            assert (accepted(second), accepted(third)) == (0, 20)


def test_a_server_that_keeps_its_socket_to_itself_draws_connections_too():
    # gRPC's own sockets are of this kind, and only those of one kind share connections
    with socket.socket(socket.AF_INET6) as first:
        first.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("::ffff:127.0.0.1", 0))
        first.listen()
        port = first.getsockname()[1]

        async def scenario():
            server = grpc.aio.server(options=SHARING_SERVER_OPTIONS)
            assert server.add_insecure_port(f"127.0.0.1:{port}") == port
            ports.draw_connections(f"127.0.0.1:{port}")
            connect(("127.0.0.1", port))
            await server.stop(0)

        asyncio.run(scenario())
        assert accepted(first) == 0


def test_who_takes_over_from_nobody_finds_the_port_taken(first):
    address = f"127.0.0.1:{first.getsockname()[1]}"
    assert ports.is_taken(address)
    with pytest.raises(OSError, match="in use"):
        ports.listener(address, takes_over=False)
    first.close()
    assert not ports.is_taken(address)
    ports.require_unused(address)
    ports.require_unused("127.0.0.1:0")
