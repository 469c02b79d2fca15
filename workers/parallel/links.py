"""The control connections to the other ranks: messages out and in, never blocking. One thread uses them."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Mapping

from workers.parallel.doorbell import Doorbell
from workers.parallel.messages import Message, MessageReader, encode


class Link:
    """One connection. What the kernel will not take yet is kept here. `ended`: the peer will say nothing more.

    A write that fails is no news by itself: the connection then reads as ended, and what the peer said last, which
    may be why, is read before that.
    """

    def __init__(self, rank: int, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.rank = rank
        self.sock = sock
        self._outgoing = bytearray()
        self._reader = MessageReader()
        self._finishing = False
        self.ended = False

    @property
    def flushed(self) -> bool:
        """Whether the kernel has taken everything."""
        return not self._outgoing

    def send(self, line: bytes) -> None:
        """Queue one encoded message and send what fits now."""
        self._outgoing += line
        self.flush()

    def finish(self) -> None:
        """Close this direction once all is sent, so that the peer reads everything and then the end."""
        self._finishing = True
        self.flush()

    def flush(self) -> None:
        """Send what fits now."""
        try:
            while self._outgoing:
                del self._outgoing[: self.sock.send(self._outgoing)]
            if self._finishing:
                self._finishing = False
                self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass  # the kernel's buffer is full; the selector says when it is not
        except OSError:
            self._outgoing.clear()

    def receive(self) -> list[Message]:
        """Messages that have arrived; sets `ended` if the connection ended after them. Raises MalformedMessage."""
        data = bytearray()
        try:
            while chunk := self.sock.recv(65536):
                data += chunk
            self.ended = True
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        return self._reader.feed(bytes(data))


class Links:
    """All connections of a rank, and the wait for news on any of them or for the doorbell."""

    def __init__(self, sockets: Mapping[int, socket.socket], bell: Doorbell) -> None:
        self._bell = bell
        self._links = {rank: Link(rank, sock) for rank, sock in sockets.items()}
        self._selector = selectors.DefaultSelector()
        self._selector.register(bell, selectors.EVENT_READ, None)
        for link in self._links.values():
            self._selector.register(link.sock, selectors.EVENT_READ, link)

    def __len__(self) -> int:
        return len(self._links)

    def wait(self, timeout_s: float) -> list[Link]:
        """Links that can be read, after at most `timeout_s`; writes what the kernel takes, answers the doorbell."""
        readable = []
        for key, events in self._selector.select(max(0.0, timeout_s)):
            if key.data is None:
                self._bell.take()
                continue
            if events & selectors.EVENT_WRITE:
                key.data.flush()
                self._watch(key.data)
            if events & selectors.EVENT_READ:
                readable.append(key.data)
        return readable

    def broadcast(self, message: Message) -> None:
        """Send to every rank that is still connected."""
        line = encode(message)
        for link in self._links.values():
            link.send(line)
            self._watch(link)

    def finish(self) -> None:
        """Send nothing more; ranks read what was sent and then the end."""
        for link in self._links.values():
            link.finish()
            self._watch(link)

    def stop_reading(self, link: Link) -> None:
        """The peer's direction has ended. Ours stays open: closing it would tell the peer that this rank left too."""
        self._selector.unregister(link.sock)

    def drop_ended(self) -> None:
        """Let go of connections whose other direction has ended, once this rank has nothing more to say."""
        for link in [link for link in self._links.values() if link.ended]:
            del self._links[link.rank]
            link.sock.close()

    def close(self) -> None:
        """Let go of all."""
        self._selector.close()
        for link in self._links.values():
            link.sock.close()
        self._links.clear()

    def _watch(self, link: Link) -> None:
        if link.ended:
            return
        events = selectors.EVENT_READ | (0 if link.flushed else selectors.EVENT_WRITE)
        if self._selector.get_key(link.sock).events != events:
            self._selector.modify(link.sock, events, link)
