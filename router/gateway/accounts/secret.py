"""The text of a key: `sk-baleen-ID-RANDOM`, where ID may be shown and the rest is known to its owner only.

RANDOM has 192 random bits and a checksum of 32, so a plain SHA-256 of it cannot be guessed back, and a mistyped key is
known without a look at any list.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib

PREFIX = "sk-baleen-"
_FORM = re.compile(r"sk-baleen-([0-9a-f]{12})-([0-9a-f]{48})([0-9a-f]{8})")


def new_secret() -> str:
    """A fresh key."""
    start = f"{PREFIX}{secrets.token_hex(6)}-{secrets.token_hex(24)}"
    return start + _checksum(start)


def key_id(secret: str) -> str | None:
    """The public part, or None if this is no key of ours."""
    match = _FORM.fullmatch(secret)
    if match is None or _checksum(secret[:-8]) != match[3]:
        return None
    return match[1]


def digest(secret: str) -> bytes:
    """What is stored, 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


def matches(secret: str, stored: bytes | None) -> bool:
    """Whether `stored` is the digest of this key. Takes as long for a key that nobody has (None)."""
    return hmac.compare_digest(digest(secret), stored or bytes(32)) and stored is not None


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
