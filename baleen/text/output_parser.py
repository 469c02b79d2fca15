"""What the model writes, taken apart as it comes: reasoning, content and tool calls.

Rules, for streams and whole texts alike (a whole text is a stream of one piece):
- Text goes out as soon as it can no longer be part of a tag. All that is not a whole tag is text.
- A call's name goes out when its opening tag is complete, then its arguments as pieces of one JSON object. The last
  brace comes right before ToolCallEnd, when the call is complete and valid.
- A call that turns out to be malformed, or that the text ends in, gets no ToolCallEnd, its arguments stay without
  their last brace and so are no JSON, and all of its text, tags included, comes as content. `message_of` leaves such a
  call out; its index is not used again. Calls complete before it stand.
- A block of calls inside the reasoning ends the reasoning. A second `<think>` at the beginning of the reasoning is
  dropped, and so is a `</think>` at the beginning of an answer without thinking. Text after a block is content, but
  for the white space before it.
"""

from __future__ import annotations

from baleen.text.call_grammar import CallGrammar
from baleen.text.dsml_calls import DSML_CALLS
from baleen.text.encoding_v32 import END_THINK, THINK
from baleen.text.output_events import Event, EventLog
from baleen.text.reader import Malformed, Reader, Reading


class OutputParser:
    """Takes one output apart, from after the `<think>` or `</think>` that the prompt ended with.

    thinking: the prompt ended with `<think>`; afterwards, whether the reasoning is still going on. tools: calls are
    looked for, as `calls` describes them. problem: in what the text is not of the format, or None; white space between
    tags is free. The text comes without the end-of-sequence string.
    """

    def __init__(self, *, thinking: bool, tools: bool, calls: CallGrammar = DSML_CALLS) -> None:
        self.thinking = thinking
        self.problem: str | None = None
        self._calls = calls
        self._block_tags = calls.tags if tools else ()
        self._reader = Reader()
        self._log = EventLog()
        self._after_block = False
        self._reading = self._read()

    def feed(self, text: str) -> list[Event]:
        """What this piece of the text settles."""
        self._reader.put(text)
        next(self._reading)
        return self._log.drain()

    def finish(self) -> list[Event]:
        """What was held back, once no more text comes. Nothing can be fed after it."""
        self._reader.end()
        next(self._reading, None)
        return self._log.drain()

    def _read(self) -> Reading[None]:
        reader = self._reader
        if self.thinking:
            yield from self._drop(THINK)
            tag = yield from reader.until((END_THINK, *self._block_tags), self._log.reasoning)
            self.thinking = False
            if tag != END_THINK:
                self._note(f"the reasoning does not end with {END_THINK}")
        else:
            yield from self._drop(END_THINK)
            tag = END_THINK
        while tag is not None:
            if tag != END_THINK:
                yield from self._block(tag)
            tag = yield from reader.until(self._block_tags, self._content)

    def _drop(self, tag: str) -> Reading[None]:
        """Pass over the tag, if the text begins with it."""
        try:
            yield from self._reader.one_of(tag)
        except Malformed:
            return
        self._note(f"{tag} at the beginning")

    def _block(self, tag: str) -> Reading[None]:
        if tag != self._calls.tags[0]:
            self._note(f"no empty line before {tag.strip()}")
        self._reader.keep(tag)
        kept = ""
        try:
            yield from self._calls.read(self._reader, self._log)
        except Malformed as error:
            self._note(str(error))
            kept = self._reader.kept()
            self._content(kept)
        self._reader.forget()
        self._after_block = not kept

    def _content(self, text: str) -> None:
        if self._after_block:
            text = text.lstrip()
            if not text:
                return
            self._note("text after the calls")
            self._after_block = False
        self._log.content(text)

    def _note(self, problem: str) -> None:
        self.problem = self.problem or problem
