"""The thread that works on an account store for an event loop: in order, and several calls in one transaction.

The store is given in, so that the disk is waited for once and not once for each request that ends.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from baleen.errors import NotReady
from router.gateway.accounts.store import AccountStore

Result = TypeVar("Result")
Work = Callable[[AccountStore], Any]

MOST_TOGETHER = 256
MOST_WAITING = 100_000
RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class _Task:
    work: Work
    answer: Future[Any]
    must_happen: bool


class Clerk:
    """Owns the store and its thread, from `start` to `close`."""

    def __init__(self, store: AccountStore) -> None:
        self._store = store
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="accounts", daemon=True)
        self._leaving = threading.Event()
        self._closed = False
        self.num_failures = 0
        """Transactions that the store could not do."""

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    async def ask(self, work: Callable[[AccountStore], Result]) -> Result:
        """The result of some work. Raises what that raises, or NotReady if the store cannot be used now."""
        answer = self._put(work, must_happen=False)
        result: Result = await asyncio.wrap_future(answer)
        return result

    def tell(self, work: Work) -> Future[Any]:
        """Have work done that must not be lost: on the disk, and tried again for as long as the store fails."""
        return self._put(work, must_happen=True)

    def close(self) -> None:
        """Do what was asked for, once more even if the store fails, and close it."""
        self._closed = True
        self._leaving.set()
        self._tasks.put(None)
        self._thread.join()

    def _put(self, work: Work, *, must_happen: bool) -> Future[Any]:
        if self._closed or (not must_happen and self._tasks.qsize() >= MOST_WAITING):
            raise NotReady("the accounts are closed or too busy; the request was not started")
        task = _Task(work, Future(), must_happen=must_happen)
        # it will be done, whether or not somebody still waits for it then
        task.answer.set_running_or_notify_cancel()
        self._tasks.put(task)
        return task.answer

    def _run(self) -> None:
        is_open = True
        while is_open:
            tasks = [self._tasks.get()]
            while len(tasks) < MOST_TOGETHER:
                try:
                    tasks.append(self._tasks.get_nowait())
                except queue.Empty:
                    break
            is_open = None not in tasks
            self._do([task for task in tasks if task is not None])
        self._store.close()

    def _do(self, tasks: list[_Task]) -> None:
        while tasks:
            try:
                answers = self._together(tasks)
            except NotReady as error:
                self.num_failures += 1
                # who waits is told; what must happen is tried again, unless this is the end
                again = [task for task in tasks if task.must_happen and not self._leaving.is_set()]
                for task in tasks:
                    if task not in again:
                        task.answer.set_exception(error)
                tasks = again
                self._leaving.wait(RETRY_S if tasks else 0)
                continue
            for task, (result, failure) in zip(tasks, answers, strict=True):
                if failure is not None:
                    task.answer.set_exception(failure)
                else:
                    task.answer.set_result(result)
            return

    def _together(self, tasks: list[_Task]) -> list[tuple[Any, Exception | None]]:
        with self._store.transaction(durable=any(task.must_happen for task in tasks)):
            return [self._one(task) for task in tasks]

    def _one(self, task: _Task) -> tuple[Any, Exception | None]:
        try:
            with self._store.transaction():
                return task.work(self._store), None
        except NotReady:
            raise
        except Exception as error:
            return None, error
