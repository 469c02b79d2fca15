"""Text that is still coming, read by generators that yield wherever they need more of it.

What a generator does depends on the text alone, never on how it was cut: nothing is decided on a part of a tag.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]


class Malformed(Exception):
    """The text is not what was expected; what had not been taken is still there."""


class Reader:
    """The part of a text that has come and was not taken yet."""

    def __init__(self) -> None:
        self._text = ""
        self._ended = False
        self._kept: list[str] | None = None

    def put(self, text: str) -> None:
        """The next piece of the text."""
        self._text += text

    def end(self) -> None:
        """There is no more."""
        self._ended = True

    def keep(self, text: str) -> None:
        """From here on what is taken is kept, after `text`, until `kept` or `forget`."""
        self._kept = [text]

    def forget(self) -> None:
        """What was taken is not needed any more."""
        self._kept = None

    def kept(self) -> str:
        """What was taken since `keep`, for the last time."""
        kept, self._kept = self._kept, None
        return "".join(kept or ())

    def until(self, tags: tuple[str, ...], put: Callable[[str], None]) -> Reading[str | None]:
        """Give `put` the text before the first of the tags as it comes, take the tag and return it.

        None if the text ended before. No tag may begin another.
        """
        pattern = _whole_or_cut(tags)
        while True:
            match = pattern.search(self._text)
            free = len(self._text) if match is None else match.start()
            if match is not None and match[0] in tags:
                if free:
                    put(self._take(free))
                return self._take(len(match[0]))
            if self._ended:
                free = len(self._text)
            if free:
                put(self._take(free))
            if self._ended:
                return None
            yield

    def one_of(self, *tags: str, space: bool = False) -> Reading[str]:
        """Take one of the tags, with `space` also white space before it. Raises Malformed if there is no tag."""
        while True:
            text = self._text.lstrip() if space else self._text
            for tag in tags:
                if text.startswith(tag):
                    self._take(len(self._text) - len(text) + len(tag))
                    return tag
            if self._ended or not any(tag.startswith(text) for tag in tags):
                raise Malformed(f"{' or '.join(tags)} is not there")
            yield

    def line_until(self, tag: str, limit: int) -> Reading[str]:
        """Take the text before the tag, and the tag. Raises Malformed if a line or `limit` characters end before."""
        while True:
            found = self._text.find(tag)
            line = self._text if found < 0 else self._text[:found]
            if len(line) > limit + (len(tag) if found < 0 else 0) or "\n" in line:
                raise Malformed(f"no {tag} within the line and {limit} characters")
            if found >= 0:
                self._take(found + len(tag))
                return line
            if self._ended:
                raise Malformed(f"the text ends before {tag}")
            yield

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        if self._kept is not None:
            self._kept.append(taken)
        return taken


@cache
def _whole_or_cut(tags: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the tags, and a beginning of one at the end of the text."""
    return re.compile("|".join(map(_nested, tags)) or "(?!)")


def _nested(tag: str) -> str:
    pattern = re.escape(tag[-1])
    for char in reversed(tag[:-1]):
        pattern = rf"{re.escape(char)}(?:\Z|{pattern})"
    return pattern
