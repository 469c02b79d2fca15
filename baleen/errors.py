"""Every exception that a user can meet.

BaleenError
  x InvalidRequest        a request's field is wrong: value and limit in the message
    x ContextExceeded     prompt and answer together are longer than the model's context
  x CapacityError         the request can never fit
    x QueueFull           no room now: try again later, or elsewhere
  x AlreadyRunning        a request of that id runs already
  x UnknownName           a model, request or ticket of that name does not exist
  x ConfigError           a configuration key or value is wrong
  x CheckpointError       a checkpoint is incomplete, damaged or of another model
  x EpochEnded            the group of ranks ended: the cause names the rank
  x HeadLost              Ray's head gives no answer: nothing can be placed, replaced or ended
  x DrainingError         the rank is leaving and takes no new requests
  x NotReady              nobody can take the request yet, or any more: try again elsewhere
  x DeadlineExceeded      the time that the request was given is over
  x PoisonRequest         ranks died while they worked on this request; it is kept out for a while
"""

from __future__ import annotations


class BaleenError(Exception):
    """Root of the tree. `exit_code` is what a process that dies of it returns.

    retry_after_s: when to try again, where that can help.
    """

    exit_code = 70
    retry_after_s: float | None = None


class InvalidRequest(BaleenError):
    """A field of a request is out of range or contradicts another."""

    exit_code = 2

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field

    def renamed(self, field: str) -> InvalidRequest:
        """The same error of a field that has another name."""
        return type(self)(str(self), field=field)


class ContextExceeded(InvalidRequest):
    """Prompt and answer together are longer than the model's context."""


class CapacityError(BaleenError):
    """A request that can never fit."""

    exit_code = 2


class QueueFull(CapacityError):
    """No room now: in `retry_after_s` seconds there may be."""

    retry_after_s = 1.0

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AlreadyRunning(BaleenError):
    """A request of the same id has not ended; this one was not started."""

    exit_code = 2


class UnknownName(BaleenError):
    """What was named does not exist, or is forgotten."""

    exit_code = 2


class ConfigError(BaleenError):
    """A configuration key is unknown, or a value is out of range."""

    exit_code = 2


class CheckpointError(BaleenError):
    """A checkpoint cannot be served: the message names file, tensor, what was expected and what was found."""

    exit_code = 3


class EpochEnded(BaleenError):
    """The group of ranks is over: one of them died, stalled, left or failed."""

    exit_code = 75

    def __init__(self, cause: str) -> None:
        super().__init__(f"epoch ended: {cause}")
        self.cause = cause


class HeadLost(BaleenError):
    """Ray's head gave no answer for too long."""


class DrainingError(BaleenError):
    """The rank is leaving; the request was not started and can go elsewhere."""

    exit_code = 75


class NotReady(BaleenError):
    """Nobody can take the request at this moment; it was not started. In `retry_after_s` seconds somebody may."""

    exit_code = 75
    retry_after_s = 1.0

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(BaleenError):
    """The time that a request was given is over."""

    exit_code = 2


class PoisonRequest(BaleenError):
    """Ranks died while they worked on this request, more than once; it is not tried again for a while."""

    exit_code = 2
