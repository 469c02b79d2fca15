"""The feed of cache events from the step loop to the announcer."""

import threading

from tests.support.redis_server import chain
from tests.support.shelf import Shelf
from workers.cache.announce import EventFeed
from workers.cache.events import Snapshot


def test_each_event_is_handed_over_once():
    shelf = Shelf()
    feed = EventFeed(shelf)
    feed.publish()
    assert feed.take(0.0) == []
    shelf.store(chain(2))
    feed.publish()
    feed.publish()
    shelf.remove(chain(2)[1:])
    feed.publish()
    assert feed.take(0.0) == shelf.events.after(0)
    assert feed.take(0.0) == []
    assert shelf.num_snapshots == 0


def test_a_reader_that_falls_behind_gets_one_snapshot_once_it_has_caught_up():
    shelf = Shelf()
    feed = EventFeed(shelf, most_waiting=4)
    for number in range(1, 20):
        shelf.store(chain(number))
        feed.publish()
    assert shelf.num_snapshots == 0, "nobody reads: no work for the step loop"
    assert feed.take(0.0) == []
    for _ in range(3):
        feed.publish()
    assert shelf.num_snapshots == 1
    [snapshot] = feed.take(0.0)
    assert isinstance(snapshot, Snapshot) and len(snapshot.stored) == 19
    shelf.store(chain(20))
    feed.publish()
    assert len(feed.take(0.0)) == 1


def test_events_that_the_log_dropped_are_replaced_by_a_snapshot():
    shelf = Shelf(capacity=3)
    feed = EventFeed(shelf)
    shelf.store(chain(10))
    feed.publish()
    assert feed.take(0.0) == []
    feed.publish()
    assert isinstance(feed.take(0.0)[0], Snapshot)


def test_a_snapshot_larger_than_the_limit_is_handed_over_all_the_same():
    shelf = Shelf(capacity=1)
    feed = EventFeed(shelf, most_waiting=1)
    shelf.store(chain(10))
    feed.publish()
    feed.take(0.0)
    feed.publish()
    assert len(feed.take(0.0)) == 1


def test_closing_ends_a_wait():
    feed = EventFeed(Shelf())
    reader = threading.Thread(target=feed.take, args=(600.0,))
    reader.start()
    feed.close()
    reader.join(30)
    assert not reader.is_alive()
    assert feed.take(600.0) == []
