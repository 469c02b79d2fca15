"""The tokenizer of a checkpoint: byte-level BPE from its tokenizer.json. Only this module imports `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers
from tokenizers import decoders

from baleen.errors import CheckpointError, InvalidRequest
from baleen.text.tokenizer_files import TOKENIZER_FILE


def load_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer in a checkpoint directory, or None if it has no tokenizer.json.

    Raises CheckpointError if the file cannot be read, or is not of byte-level BPE.
    """
    path = directory / TOKENIZER_FILE
    if not path.exists():
        return None
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise CheckpointError(f"{path}: not a tokenizer: {error}") from error
    if not isinstance(backend.decoder, decoders.ByteLevel):
        found = type(backend.decoder).__name__ if backend.decoder else "none"
        raise CheckpointError(f"{path}: decoder is {found}, must be ByteLevel")
    return Tokenizer(backend)


class Tokenizer:
    """Text to token ids and back. Special tokens are text like any other, in both directions."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._added = {token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items()}
        self._bytes: dict[int, bytes] = {}

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def added_tokens(self) -> Mapping[int, str]:
        """Tokens that stand beside the vocabulary of pieces, by id: what marks the parts of a prompt and an answer."""
        return self._added

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; nothing is put before or after. Raises InvalidRequest if it is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"text holds U+{ord(text[error.start]):04X} at {error.start}, half of a surrogate pair", field="prompt"
            ) from error
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of all tokens together; each maximal piece of bytes that is not UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for: none for an id without a token (a model's vocabulary may be padded)."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._look_up(token_id)
        return found

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if not _BYTE_OF.keys() >= set(token):
            return token.encode()
        return bytes(_BYTE_OF[char] for char in token)


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary, as GPT-2 introduced it.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, are U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_alphabet()
