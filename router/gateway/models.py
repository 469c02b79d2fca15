"""The names of the model: what clients may ask for, and whether it thinks under that name."""

from __future__ import annotations

from dataclasses import dataclass

from baleen.errors import InvalidRequest, UnknownName

ALIASES = {
    "deepseek-v3.2": False,
    "deepseek-v3.2-exp": False,
    "DeepSeek-V3.2-Exp-thinking": True,
    "DeepSeek-V3.2-Exp-nothinking": False,
    "deepseek-chat": False,
    "deepseek-reasoner": True,
}
"""Names that users of DeepSeek's models have, and whether they think unless the request says otherwise."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One name as it is listed. thinks: without being told."""

    name: str
    thinks: bool


class ModelNames:
    """Finds names in whatever case. All are the same model, that which the router calls `served`."""

    def __init__(self, served: str) -> None:
        self.served = served
        named = {served: False, **ALIASES}
        self.models = [ServedModel(name, thinks) for name, thinks in named.items()]
        self._by_name = {model.name.lower(): model for model in self.models}

    def knows(self, name: str) -> bool:
        """Whether it is one of them."""
        return name.lower() in self._by_name

    def listed(self, name: str) -> ServedModel:
        """The model of that name. Raises UnknownName."""
        found = self._by_name.get(name.lower())
        if found is None:
            raise UnknownName(f"The model {name[:128]!r} does not exist")
        return found

    def find(self, name: str) -> ServedModel:
        """The model of that name. Raises InvalidRequest with DeepSeek's words."""
        found = self._by_name.get(name.lower())
        if found is None:
            names = ", ".join(model.name for model in self.models)
            raise InvalidRequest(
                f"The supported API model names are {names}, but you passed {name[:128]}.", field="model"
            )
        return found
