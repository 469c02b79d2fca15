"""Where requests with a constraint or a budget wait, beside the step loop, until their masks are ready.

What comes later for such a request waits behind it; everything else passes by.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from threading import Lock, Thread

from baleen.errors import BaleenError, DrainingError, QueueFull
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from baleen.telemetry import Log
from baleen.text.grammars import Grammars, deep_stack
from workers.engine.budget_mask import BudgetMask
from workers.engine.grammar_mask import GrammarMask
from workers.engine.inbox import Inbox
from workers.engine.loop import refusal
from workers.engine.messages import Abort, Command, Event, Submit
from workers.engine.token_mask import TokenMask

MOST_WAITING = 1024
"""Requests whose grammars are not ready; more are refused."""


class Anteroom:
    """Stands before an inbox. Its thread starts with the first constraint and ends with the process."""

    def __init__(self, inbox: Inbox, *, emit: Callable[[Event], None], log: Log) -> None:
        """emit: takes the refusals of requests whose constraint cannot be kept; any thread."""
        self._inbox = inbox
        self._emit = emit
        self._log = log
        self._grammars: Future[Grammars | None] = Future()
        self._lock = Lock()
        self._waiting: dict[RequestId, int] = {}
        self._queue: SimpleQueue[Submit | Abort] = SimpleQueue()
        self._thread: Thread | None = None

    def open(self, grammars: Grammars | None) -> None:
        """Begin to make masks ready. None: the model has no tokenizer, and the step loop refuses what needs masks."""
        self._grammars.set_result(grammars)

    def put(self, command: Command) -> bool:
        """Add a command; False if the loop has ended and will never see it."""
        if isinstance(command, Submit) and _needs_masks(command.sampling):
            with self._lock:
                full = len(self._waiting) >= MOST_WAITING
                if not full:
                    self._wait(command)
            if full:
                self._refuse(command, QueueFull(f"{MOST_WAITING} requests wait for their grammars, which is the most"))
            return True
        if isinstance(command, Abort) and self._waiting:
            with self._lock:
                if command.request_id in self._waiting:
                    self._wait(command)
                    return True
        return self._inbox.put(command)

    def _wait(self, command: Submit | Abort) -> None:
        self._waiting[command.request_id] = self._waiting.get(command.request_id, 0) + 1
        self._queue.put(command)
        if self._thread is None:
            self._thread = Thread(target=self._work, name="grammars", daemon=True)
            with deep_stack():
                self._thread.start()

    def _work(self) -> None:
        while True:
            command = self._queue.get()
            ready: Submit | Abort | None = command
            if isinstance(command, Submit):
                ready = self._prepared(command)
            # under the lock, so that an abort that comes now finds either this one waiting or in the inbox
            with self._lock:
                if self._waiting[command.request_id] == 1:
                    del self._waiting[command.request_id]
                else:
                    self._waiting[command.request_id] -= 1
                taken = ready is None or self._inbox.put(ready)
            if not taken and isinstance(command, Submit):
                self._refuse(command, DrainingError("the rank has left"))

    def _prepared(self, submit: Submit) -> Submit | None:
        """The request with its masks, or None if it was refused."""
        try:
            return replace(submit, token_masks=self._masks(submit))
        except BaleenError as error:
            self._refuse(submit, error)
        except Exception as error:
            # the thread serves the others, and every request gets an answer
            self._log.error("a grammar failed by a fault of the rank", request=submit.request_id, error=repr(error))
            self._refuse(submit, BaleenError(f"the constraint could not be prepared: {type(error).__name__}"))
        return None

    def _masks(self, submit: Submit) -> tuple[TokenMask, ...]:
        grammars, sampling = self._grammars.result(), submit.sampling
        if grammars is None:
            return ()
        masks = tuple(_mask(grammars, sampling) for _ in range(sampling.n))
        if submit.num_delivered:
            for token_id in submit.token_ids[-submit.num_delivered :]:
                masks[0].accept(token_id)
        return masks

    def _refuse(self, submit: Submit, error: BaleenError) -> None:
        self._log.info("request ended", request=submit.request_id, outcome="refused", error=type(error).__name__)
        self._emit(refusal(submit.request_id, error))


def _needs_masks(sampling: SamplingParams) -> bool:
    return sampling.constraint is not None or sampling.budget is not None


def _mask(grammars: Grammars, sampling: SamplingParams) -> TokenMask:
    """A mask at the beginning of a completion. Raises InvalidRequest that names the field."""
    grammar = None
    if sampling.constraint is not None:
        grammar = GrammarMask(grammars.matcher(sampling.constraint), grammars, sampling)
    if sampling.budget is None:
        assert grammar is not None
        return grammar
    return BudgetMask(sampling.budget, grammars.tokenizer, grammar)
