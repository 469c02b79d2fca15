"""Every exception that a user can meet.

BaleenError
  x InvalidRequest        a request's field is wrong: value and limit in the message
  x CapacityError         the request can never fit, or the queue is full
  x ConfigError           a configuration key or value is wrong
  x CheckpointError       a checkpoint is incomplete, damaged or of another model
  x EpochEnded            the group of ranks ended: the cause names the rank
  x DrainingError         the rank is leaving and takes no new requests
"""

from __future__ import annotations


class BaleenError(Exception):
    """Root of the tree. `exit_code` is what a process that dies of it returns."""

    exit_code = 70


class InvalidRequest(BaleenError):
    """A field of a request is out of range or contradicts another."""

    exit_code = 2

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class CapacityError(BaleenError):
    """A request that can never fit, or a queue that is full now."""

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


class DrainingError(BaleenError):
    """The rank is leaving; the request was not started and can go elsewhere."""

    exit_code = 75
