"""Transfers under TLS: who is let in, who is not, and what either side is told."""

import re
import ssl
from contextlib import ExitStack
from dataclasses import replace

import pytest

from baleen.errors import ConfigError
from baleen.tls_config import TlsConfig
from tests.support.certificates import Authority, tls_config
from tests.support.transfer import TIMEOUT_S, RawSender, Side, failure_of, landing
from workers.transfer.tls import Tls
from workers.transfer.transport import BlockPushed, PushEnded


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """TLS of the ranks of a cluster, whose certificates carry the address."""
    return Tls.open(tls_config(Authority(tmp_path_factory.mktemp("certificates")), "rank", "127.0.0.1"))


@pytest.fixture
def make_side(certified):
    """Makes sides, under TLS unless told otherwise, and closes them."""
    with ExitStack() as stack:

        def make(**kwargs):
            side = Side(**{"tls": certified, **kwargs})
            stack.callback(side.transport.close)
            return side

        yield make


@pytest.fixture
def sender(make_side):
    return make_side(seed=1)


@pytest.fixture
def receiver(make_side):
    return make_side(seed=2)


def test_a_plain_sender_is_told_that_tls_is_wanted(receiver, make_side):
    plain = make_side(tls=None)
    receiver.transport.expect(landing("t", [0]))
    plain.push(receiver.transport.address, "t", [0])
    cause = (
        f"receiver {receiver.transport.address} takes blocks over TLS only, "
        f"sender {plain.transport.address} speaks plain TCP"
    )
    assert cause in failure_of(plain.news)
    assert cause in receiver.lines.get(timeout=TIMEOUT_S)
    assert receiver.changed() == [] and receiver.transport.revoke("t")


def test_a_plain_receiver_is_no_place_for_a_tls_sender(sender, make_side):
    plain = make_side(tls=None)
    plain.transport.expect(landing("t", [0]))
    sender.push(plain.transport.address, "t", [0])
    assert "hung up or speaks plain TCP" in failure_of(sender.news)
    assert "the peer speaks TLS, this rank plain TCP" in plain.lines.get(timeout=TIMEOUT_S)


def test_who_has_no_certificate_of_the_authority_is_refused_on_either_side(receiver, sender, make_side, tmp_path):
    stranger = make_side(tls=Tls.open(tls_config(Authority(tmp_path), "rank", "127.0.0.1")))
    for one, other in ((stranger, receiver), (sender, stranger)):
        other.transport.expect(landing("t", [0]))
        one.push(other.transport.address, "t", [0])
        assert re.search("certificate is refused: .*|handshake", failure_of(one.news))
        assert other.lines.get(timeout=TIMEOUT_S)
        assert other.changed() == [] and other.transport.revoke("t")


def test_a_client_without_a_certificate_is_refused(certified, tmp_path):
    """It trusts the authority and believes that the handshake is over; the receiver does not."""
    side = Side(tls=certified)
    side.transport.expect(landing("t", [0]))
    bare = ssl.create_default_context()
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    with RawSender(side.transport.address, replace(certified, client=bare)) as raw, pytest.raises(OSError):
        raw.greet("t", 1)
    assert "no TLS handshake" in side.lines.get(timeout=TIMEOUT_S)
    side.transport.close()


def test_the_name_in_the_certificate_counts(tmp_path):
    authority = Authority(tmp_path)
    right = Side(tls=Tls.open(tls_config(authority, "right", "rank.cluster", server_name="rank.cluster")))
    wrong = Side(tls=Tls.open(tls_config(authority, "wrong", "elsewhere", server_name="rank.cluster")))
    peer = Side(tls=Tls.open(tls_config(authority, "peer", "rank.cluster", server_name="rank.cluster")))
    right.transport.expect(landing("t", [0]))
    peer.push(right.transport.address, "t", [0])
    assert peer.news.take(2) == [BlockPushed(1), PushEnded(1, None)]
    wrong.transport.expect(landing("t", [0]))
    peer.push(wrong.transport.address, "t", [0])
    assert "Hostname mismatch" in failure_of(peer.news)
    for side in (right, wrong, peer):
        side.transport.close()


def test_files_that_cannot_be_used_are_named(tmp_path):
    config = tls_config(Authority(tmp_path), "rank", "127.0.0.1")
    for name in ("ca_file", "cert_file", "key_file"):
        with pytest.raises(ConfigError, match=f"tls.{name} is '/nowhere'"):
            Tls.open(replace(config, **{name: "/nowhere"}))
    with pytest.raises(ConfigError, match=r"tls.key_file is missing"):
        TlsConfig(ca_file="a", cert_file="b")
    assert Tls.open(TlsConfig()) is None
