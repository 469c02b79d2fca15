"""The fault proxy does to real connections what it says, when it says, and counts it."""

import asyncio
import contextlib

import pytest

from loadtest.fault_proxy import Fault, FaultProxy

WAIT_S = 10.0


@contextlib.asynccontextmanager
async def echo():
    """A server that sends everything back; yields its address."""

    async def serve(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@contextlib.asynccontextmanager
async def connected(*faults):
    """A proxy before an echo, and a connection through it."""
    async with echo() as target, FaultProxy("127.0.0.1:0", target) as proxy:
        proxy.plan(*faults)
        host, port = proxy.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield proxy, reader, writer
        finally:
            writer.close()


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario(), 2 * WAIT_S))


def test_everything_passes_and_is_counted():
    async def scenario():
        async with connected() as (proxy, reader, writer):
            data = bytes(range(256)) * 1000
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            await proxy.until(lambda counts: counts.bytes == {"up": len(data), "down": len(data)}, WAIT_S)
            assert proxy.counts.connections == 1 and not any(proxy.counts.faults.values())
            writer.write_eof()
            assert await reader.read() == b""

    run(scenario)


@pytest.mark.parametrize("at_byte", [0, 1, 5, 9])
def test_a_cut_lets_exactly_the_bytes_before_it_pass(at_byte):
    async def scenario():
        async with connected(Fault("cut", at_byte, "down")) as (proxy, reader, writer):
            writer.write(b"0123456789")
            assert await reader.read() == b"0123456789"[:at_byte]
            assert proxy.counts.faults["cut"] == 1 and proxy.counts.bytes["down"] == at_byte
            assert await again(proxy) == b"x"

    run(scenario)


async def again(proxy):
    """What another connection gets for an x."""
    host, port = proxy.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"x")
    try:
        return await reader.readexactly(1)
    finally:
        writer.close()


def test_a_reset_is_a_reset():
    async def scenario():
        async with connected(Fault("reset", 3)) as (proxy, reader, writer):
            writer.write(b"0123456789")
            with pytest.raises(ConnectionResetError):
                while await reader.read(100):
                    pass
            assert proxy.counts.faults["reset"] == 1 and proxy.counts.bytes["up"] == 3

    run(scenario)


def test_one_byte_is_inverted_and_no_other():
    async def scenario():
        async with connected(Fault("corrupt", 4), Fault("corrupt", 6)) as (proxy, reader, writer):
            data = bytes(10)
            writer.write(data)
            assert await reader.readexactly(10) == bytes([0, 0, 0, 0, 255, 0, 255, 0, 0, 0])
            assert proxy.counts.faults["corrupt"] == 2

    run(scenario)


def test_a_held_connection_passes_nothing_until_it_is_released():
    async def scenario():
        async with connected(Fault("hold", 4)) as (proxy, reader, writer):
            writer.write(b"0123456789")
            await proxy.until(lambda counts: counts.faults["hold"] == 1, WAIT_S)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            assert proxy.counts.bytes == {"up": 4, "down": 0}
            proxy.release()
            assert await reader.readexactly(10) == b"0123456789"
            proxy.hold()
            writer.write(b"ab")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            proxy.release()
            assert await reader.readexactly(2) == b"ab"

    run(scenario)


def test_a_half_open_connection_says_nothing_and_does_not_end():
    async def scenario():
        async with connected() as (proxy, reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            proxy.half_open()
            writer.write(b"b")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            assert proxy.counts.faults["half_open"] == 1 and proxy.num_links == 1
            proxy.cut()
            assert await reader.read() == b""

    run(scenario)


def test_refusal_and_its_end():
    async def scenario():
        async with connected() as (proxy, reader, writer):
            await proxy.until(lambda counts: counts.connections == 1, WAIT_S)
            await proxy.refuse()
            with pytest.raises(OSError):
                await again(proxy)
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            await proxy.accept()
            assert await again(proxy) == b"x"

    run(scenario)


def test_a_delay_changes_no_byte():
    async def scenario():
        async with connected() as (proxy, reader, writer):
            proxy.delay_s = 0.02
            begin = asyncio.get_running_loop().time()
            writer.write(b"abc")
            assert await reader.readexactly(3) == b"abc"
            assert asyncio.get_running_loop().time() - begin >= 0.04

    run(scenario)


def test_a_target_that_is_not_there_is_a_reset():
    async def scenario():
        async with FaultProxy("127.0.0.1:0", "127.0.0.1:1") as proxy:
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await again(proxy)

    run(scenario)
