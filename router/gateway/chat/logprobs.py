"""Log-probabilities of an answer's tokens, in the chat dialect."""

from __future__ import annotations

from typing import Any

from baleen.text.tokenizer import Tokenizer
from router.gateway.ask import Piece

Json = dict[str, Any]


def shown_logprobs(piece: Piece, tokenizer: Tokenizer) -> list[Json]:
    """One entry for each token of the piece that has them; a token that is part of a character shows U+FFFD."""
    return [
        _shown(token_id, entry.logprob, tokenizer)
        | {"top_logprobs": [_shown(top.token_id, top.logprob, tokenizer) for top in entry.top]}
        for token_id, entry in zip(piece.token_ids, piece.logprobs, strict=False)
    ]


def _shown(token_id: int, logprob: float, tokenizer: Tokenizer) -> Json:
    data = tokenizer.token_bytes(token_id)
    # JSON has no infinity
    return {"token": data.decode(errors="replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}
