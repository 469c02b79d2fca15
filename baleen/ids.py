"""Identities: small string or integer types, so that one cannot be passed for another."""

from __future__ import annotations

import secrets
from typing import NewType

RequestId = NewType("RequestId", str)
"""One submission from a client, unique within a rank's life; its n completions share it."""

Rank = NewType("Rank", int)
"""Place of a worker process in its group, 0 to world_size - 1."""

Epoch = NewType("Epoch", str)
"""One life of a group: ranks of different epochs never talk to each other."""

Incarnation = NewType("Incarnation", str)
"""One life of a rank: facts that others hold about a rank carry it."""


def new_request_id() -> RequestId:
    """A fresh request id, 96 random bits."""
    return RequestId(f"req-{secrets.token_hex(12)}")


def new_epoch() -> Epoch:
    """A fresh epoch, 64 random bits."""
    return Epoch(secrets.token_hex(8))


def new_incarnation() -> Incarnation:
    """A fresh incarnation, 64 random bits."""
    return Incarnation(secrets.token_hex(8))
