"""Which router asked for which request: events of the step loop go to the session that they are for, and only there.

Everything here runs in the event loop of the gRPC server.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Collection

from baleen.errors import AlreadyRunning
from baleen.ids import RequestId
from baleen.reports import PromptReport, RequestOutput
from baleen.v1 import worker_pb2
from workers.engine.messages import Abort, Ended, PrefillDone, Refused, ReleaseReservation, StepReport
from workers.wire import ended_to_proto, prefill_done_to_proto, refused_to_proto, step_report

_MERGE_OUTPUTS = 4096
"""A report that waits takes in later steps up to this many outputs, which is far below the largest message."""

_MOST_TICKETS = 4096


class RouterSession:
    """What waits to be written to one router. A slow one gets many steps in one message, and delays nobody."""

    def __init__(self, traceparent: str = "", name: str = "") -> None:
        """name: as the router calls it in other calls; empty if it does not."""
        self.traceparent = traceparent
        self.name = name
        self._waiting: deque[worker_pb2.SessionResponse] = deque()
        self._arrival = asyncio.Event()
        self._finished = False

    def say(self, response: worker_pb2.SessionResponse) -> None:
        """Queue a message. Bounded by what the router itself has asked for."""
        last = self._waiting[-1] if self._waiting else None
        if last is not None and response.HasField("step_report") and last.HasField("step_report"):
            new, old = response.step_report, last.step_report
            fits = len(old.outputs) + len(new.outputs) <= _MERGE_OUTPUTS
            # of prompts one step can say much, and they come before the outputs
            if fits and not (old.prompts or new.prompts):
                old.step = new.step
                old.outputs.extend(new.outputs)
                old.load.CopyFrom(new.load)
                return
        self._waiting.append(response)
        self._arrival.set()

    def finish(self) -> None:
        """Nothing comes any more: `next` gives None after what waits."""
        self._finished = True
        self._arrival.set()

    async def next(self) -> worker_pb2.SessionResponse | None:
        """The next message to write; None at the end."""
        while not self._waiting:
            if self._finished:
                return None
            self._arrival.clear()
            await self._arrival.wait()
        return self._waiting.popleft()


class SessionTable:
    """All sessions of a rank, and the requests and unused reservations of each."""

    def __init__(self, put: Callable[[Abort | ReleaseReservation], object]) -> None:
        """`put` hands a command to the step loop."""
        self._put = put
        self._sessions: set[RouterSession] = set()
        self._owners: dict[RequestId, tuple[RouterSession, int]] = {}
        self._tickets: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._last: StepReport | None = None
        self._ended: Ended | None = None

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._owners)

    @property
    def ended(self) -> Ended | None:
        """Why nothing comes any more, or None."""
        return self._ended

    def open(self, traceparent: str, opened: worker_pb2.SessionResponse, name: str = "") -> RouterSession:
        """A new session: it starts with `opened` and the load as it is now."""
        session = RouterSession(traceparent, name)
        self._sessions.add(session)
        session.say(opened)
        if self._last is not None:
            session.say(step_report(self._last.step, (), self._last.load))
        return session

    def close(self, session: RouterSession) -> None:
        """The router has gone: so do its requests and reservations. Ids stay taken until the step loop is through."""
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        session.finish()
        for request_id in [name for name, (owner, _) in self._owners.items() if owner is session]:
            self._put(Abort(request_id))
        for ticket, _ in self._numbered(session):
            self.release_ticket(ticket)

    def reserved(self, name: str, ticket: str, number: int = 0) -> None:
        """A reservation was made under the name of a session: it ends with that, at once if it is over already.

        number: as the session counts its own; 0: it does not.
        """
        self._tickets[ticket] = name, number
        if not any(session.name == name for session in self._sessions):
            self.release_ticket(ticket)
        elif len(self._tickets) > _MOST_TICKETS:
            # its own deadline, which is always there, has to do
            self._tickets.popitem(last=False)

    def keep_only(self, session: RouterSession, wanted: Collection[int], last: int) -> None:
        """The session says which of its reservations, of those up to number `last`, it still wants."""
        kept = set(wanted)
        for ticket, number in self._numbered(session):
            if 0 < number <= last and number not in kept:
                self.release_ticket(ticket)

    def _numbered(self, session: RouterSession) -> list[tuple[str, int]]:
        """Tickets and numbers of a session's reservations that no request has come for."""
        return [(ticket, number) for ticket, (name, number) in self._tickets.items() if name and name == session.name]

    def release_ticket(self, ticket: str) -> None:
        """Nobody needs a reservation."""
        self.ticket_used(ticket)
        self._put(ReleaseReservation(ticket))

    def ticket_used(self, ticket: str) -> None:
        """A request has come for its reservation."""
        self._tickets.pop(ticket, None)

    def claim(self, session: RouterSession, request_id: RequestId, num_completions: int) -> None:
        """Send news of a request to `session` until that many completions have ended. Raises AlreadyRunning."""
        if request_id in self._owners:
            raise AlreadyRunning(f"request_id is {request_id!r}, which belongs to a request that has not ended")
        self._owners[request_id] = (session, num_completions)

    def owns(self, session: RouterSession, request_id: RequestId) -> bool:
        """Whether a request of this id has not ended, and is of this session."""
        owner = self._owners.get(request_id)
        return owner is not None and owner[0] is session

    def release(self, request_id: RequestId) -> None:
        """Forget a request that the step loop never got."""
        del self._owners[request_id]

    def report(self, report: StepReport) -> None:
        """Give each session its part of a step, and all of them the load."""
        self._last = report
        parts: dict[RouterSession, list[RequestOutput]] = {}
        prompts: dict[RouterSession, list[PromptReport]] = {}
        for prompt in report.prompts:
            owner = self._owners.get(prompt.request_id)
            if owner is not None:
                prompts.setdefault(owner[0], []).append(prompt)
        for output in report.outputs:
            owner = self._owners.get(output.request_id)
            if owner is None:
                continue
            session, left = owner
            parts.setdefault(session, []).append(output)
            if output.finish is not None:
                if left > 1:
                    self._owners[output.request_id] = (session, left - 1)
                else:
                    del self._owners[output.request_id]
        for session in self._sessions:
            session.say(step_report(report.step, parts.get(session, ()), report.load, prompts.get(session, ())))

    def refused(self, refused: Refused) -> None:
        """Tell the session whose request was not taken."""
        self._last_word(refused.request_id, refused_to_proto(refused))

    def prefill_done(self, done: PrefillDone) -> None:
        """Tell the session whose prefill has ended."""
        self._last_word(done.request_id, prefill_done_to_proto(done))

    def end(self, ended: Ended) -> None:
        """The last message to everyone; only the first call counts."""
        if self._ended is not None:
            return
        self._ended = ended
        for session in self._sessions:
            session.say(ended_to_proto(ended))
            session.finish()

    def _last_word(self, request_id: RequestId | None, response: worker_pb2.SessionResponse) -> None:
        owner = self._owners.pop(request_id, None) if request_id is not None else None
        if owner is not None and owner[0] in self._sessions:
            owner[0].say(response)
