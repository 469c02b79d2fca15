"""Stop strings in streamed text: finds them wherever the pieces are cut, and lets none of their text out.

The match is the stop string that is complete first; of several complete at the same character, the longest. This does
not depend on how the text is cut. Text before the match goes out; the match and what follows it do not.

Method: the automaton of Aho and Corasick (1975). Its state is the longest end of the text that begins a stop string,
which is also exactly the text that must be held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """Stop strings made ready for matching; any number of matchers can share them."""

    __slots__ = ("depth", "fallback", "match", "next")

    def __init__(self, stops: Sequence[str]) -> None:
        """stops: none of them empty.

        State 0 is the root. depth: characters of text that a state stands for. match: longest stop string that ends
        in a state, or None. next: state after a character, where it continues. fallback: state to try where not.
        """
        assert all(stops)
        self.next: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.fallback = [0]
        self.match: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._link()

    def step(self, state: int, char: str) -> int:
        """State after one more character."""
        while state and char not in self.next[state]:
            state = self.fallback[state]
        return self.next[state].get(char, 0)

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self.next[state]:
                self.next[state][char] = len(self.next)
                self.next.append({})
                self.depth.append(self.depth[state] + 1)
                self.fallback.append(0)
                self.match.append(None)
            state = self.next[state][char]
        self.match[state] = stop

    def _link(self) -> None:
        """Set fallbacks, nearest states first: the longest proper end of a state's text that is a state too."""
        queue = deque(self.next[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self.next[state].items():
                self.fallback[child] = self.step(self.fallback[state], char)
                self.match[child] = self.match[child] or self.match[self.fallback[child]]
                queue.append(child)


class StopMatcher:
    """Watches one text for stop strings. After a match it takes no more text."""

    __slots__ = ("_held", "_state", "_stops")

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._state = 0
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take the next piece; returns text that may go out now, and the stop string if one is complete."""
        stops, state = self._stops, self._state
        for place, char in enumerate(text):
            state = stops.step(state, char)
            match = stops.match[state]
            if match is not None:
                known = self._held + text[: place + 1]
                self._state, self._held = 0, ""
                return known[: -len(match)], match
        known = self._held + text
        free = len(known) - stops.depth[state]
        self._state, self._held = state, known[free:]
        return known[:free], None

    def finish(self) -> str:
        """The text still held back, once no more comes."""
        held, self._held, self._state = self._held, "", 0
        return held
