"""Ids of what a gateway gives out."""

from __future__ import annotations

import secrets


def new_id(prefix: str) -> str:
    """A fresh id, 96 random bits after the prefix."""
    return prefix + secrets.token_hex(12)
