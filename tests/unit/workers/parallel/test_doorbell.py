"""A ring is never lost, and a late one harms nobody."""

from __future__ import annotations

import select
import threading

from workers.parallel.doorbell import Doorbell


def rung(bell: Doorbell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_rung_until_taken() -> None:
    bell = Doorbell()
    assert not rung(bell) and not bell.take()
    bell.ring()
    bell.ring()
    assert rung(bell) and rung(bell)
    assert bell.take()
    assert not rung(bell) and not bell.take()
    bell.close()


def test_more_rings_than_a_buffer_holds() -> None:
    bell = Doorbell()
    for _ in range(20_000):
        bell.ring()
    assert bell.take() and not bell.take()
    bell.close()


def test_another_threads_ring_ends_a_wait() -> None:
    bell = Doorbell()
    ringer = threading.Thread(target=bell.ring)
    ringer.start()
    assert select.select([bell], [], [], 30)[0]
    ringer.join()
    bell.close()


def test_a_ring_after_the_end_is_nothing() -> None:
    bell = Doorbell()
    bell.close()
    bell.ring()
