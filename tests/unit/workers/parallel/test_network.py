"""Which interface owns an address."""

from __future__ import annotations

import os
import socket

import pytest

from baleen.errors import ConfigError
from workers.parallel.network import interface_of, use_interface_of


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.53"])
def test_loopback(host: str) -> None:
    assert interface_of(host) == "lo"


def test_an_address_of_another_machine_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"'192\.0\.2\.255'.*must be an IPv4 address of this machine: lo 127\.0\.0\.1"
    ):
        interface_of("192.0.2.255")


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(host: str) -> str:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.gethostbyname", unknown)
    with pytest.raises(ConfigError, match=r"parallel\.host is 'no-such-host': .*not known"):
        interface_of("no-such-host")


def test_an_operators_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "to be removed")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_interface_of("127.0.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
