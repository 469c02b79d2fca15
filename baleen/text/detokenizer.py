"""Tokens of one completion to text, as they come, with no half characters."""

from __future__ import annotations

import codecs

from baleen.text.tokenizer import Tokenizer


class Detokenizer:
    """What `feed` and then `finish` return, put together, is `Tokenizer.decode` of all tokens.

    A character that is spread over several tokens comes with the token that completes it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """Text that this token completes."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """U+FFFD for a character that was begun and never completed, if there is one."""
        return self._decoder.decode(b"", final=True)
