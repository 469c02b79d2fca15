"""What a request may demand of the form of its answer, as text that travels with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from baleen.errors import InvalidRequest

ConstraintKind = Literal["json_object", "json_schema", "regex", "grammar"]

MAX_CHARS = 131_072
"""Characters of a schema, expression or grammar."""

MAX_AFTER = 64
"""Characters of the text that the constraint waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """The form that the text of a completion keeps to, to its last character.

    kind: what `text` is: nothing (any JSON object), a JSON schema, a regular expression of the whole answer (Rust's
    syntax: no look-around, no references back), or a grammar in Lark's or GBNF's notation. after: free text comes
    first, up to and with this text. lenient: keywords of a schema that cannot be enforced are passed over.
    """

    kind: ConstraintKind
    text: str = ""
    after: str = ""
    lenient: bool = False

    def __post_init__(self) -> None:
        """Raise InvalidRequest with the field, the value and the limit."""
        if self.kind not in get_args(ConstraintKind):
            known = ", ".join(get_args(ConstraintKind))
            raise InvalidRequest(f"constraint.kind is {self.kind!r}, must be one of {known}", field="constraint.kind")
        if len(self.text) > MAX_CHARS:
            problem = f"constraint.text has {len(self.text)} characters, at most {MAX_CHARS} are allowed"
            raise InvalidRequest(problem, field="constraint.text")
        if bool(self.text) is (self.kind == "json_object"):
            problem = "must be empty" if self.text else "is empty"
            raise InvalidRequest(f"constraint.text {problem} where kind is {self.kind}", field="constraint.text")
        for name, text in (("text", self.text), ("after", self.after)):
            if any("\ud800" <= char <= "\udfff" for char in text):
                problem = f"constraint.{name} holds half of a surrogate pair"
                raise InvalidRequest(problem, field=f"constraint.{name}")
        if len(self.after) > MAX_AFTER:
            problem = f"constraint.after has {len(self.after)} characters, at most {MAX_AFTER} are allowed"
            raise InvalidRequest(problem, field="constraint.after")
