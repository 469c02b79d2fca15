"""The event log: consecutive numbers, a bounded past, and a snapshot for who fell behind."""

from baleen.blocks import BlockHash
from workers.cache.events import Cleared, EventLog, Removed, Stored

H = [BlockHash(bytes([value]) * 16) for value in range(5)]


def test_events_are_numbered_from_one_without_gaps() -> None:
    log = EventLog(10)
    assert log.sequence == 0 and log.after(0) == []
    log.stored(H[1], H[0], 7)
    log.removed(H[1])
    log.cleared()
    assert log.after(0) == [Stored(1, H[1], H[0], 7), Removed(2, H[1]), Cleared(3)]
    assert log.after(2) == [Cleared(3)]
    assert log.after(3) == []


def test_a_reader_that_fell_behind_is_told_so() -> None:
    log = EventLog(2)
    for value in H[:3]:
        log.removed(value)
    assert log.after(0) is None
    assert log.after(1) == [Removed(2, H[1]), Removed(3, H[2])]
