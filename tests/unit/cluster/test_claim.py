"""Claims on addresses: one holder each, the first free one, and free again once let go."""

import socket
import threading

import pytest

from baleen.errors import ConfigError
from cluster.claim import Claim, await_free


@pytest.fixture
def addresses(tmp_path):
    # nobody listens there; the names are this test's own
    return [f"{tmp_path}:{port}" for port in (1, 2)]


def test_each_has_the_first_that_is_free(addresses):
    with Claim(addresses, timeout_s=0) as first, Claim(addresses, timeout_s=0) as second:
        assert (first.number, second.number) == (0, 1)
        with pytest.raises(ConfigError, match=f"other clusters of this machine have {addresses[0]}, {addresses[1]}"):
            Claim(addresses, timeout_s=0)
        first.release()
        with Claim(addresses, timeout_s=0) as third:
            assert third.number == 0


def test_one_that_is_let_go_is_waited_for(addresses):
    first = Claim(addresses[:1], timeout_s=0)
    threading.Timer(0.1, first.release).start()
    with Claim(addresses[:1], timeout_s=20) as second:
        assert second.number == 0


def test_an_address_is_waited_for_until_nobody_listens_there():
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    await_free([address], timeout_s=0)
    threading.Timer(0.1, listener.close).start()
    await_free([address], timeout_s=20)
    assert listener.fileno() == -1
