"""From one submission to its n requests: validated against the model, each with its own seed."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b

from baleen.errors import InvalidRequest
from baleen.ids import RequestId
from baleen.sampling import MAX_SEED, SamplingParams
from workers.engine.request import Request
from workers.engine.token_mask import TokenMask


def completion_seed(seed: int, index: int) -> int:
    """Seed of completion `index` of a submission with `seed`, from 0 to MAX_SEED.

    Completion 0 keeps the seed, so the first of n completions is the one that n=1 gives.
    """
    if index == 0:
        return seed
    message = seed.to_bytes(8, "little") + index.to_bytes(8, "little")
    digest = blake2b(message, digest_size=8, person=b"baleen.seed").digest()
    return int.from_bytes(digest, "little") & MAX_SEED


def expand_submission(
    request_id: RequestId,
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    *,
    vocab_size: int,
    eos_token_ids: Collection[int],
    prefix_cache: bool = True,
    salt: bytes = b"",
    priority: int = 0,
    deadline: float | None = None,
    new_token_mask: Callable[[], TokenMask] | None = None,
) -> list[Request]:
    """The `sampling.n` requests of one submission, in order of their index.

    Without a seed in `sampling` a random one is drawn. Without `prefix_cache` the salt is made unique, so that only
    these requests share blocks with each other. new_token_mask is called once per completion.
    Raises InvalidRequest for a prompt, stop token or biased token outside the vocabulary.
    """
    if not prompt_ids:
        raise InvalidRequest("prompt has 0 tokens, at least 1 is needed", field="prompt")
    try:
        token_ids = array("q", prompt_ids).tolist()
    except (TypeError, OverflowError) as error:
        raise InvalidRequest(f"prompt holds something that is no token id: {error}", field="prompt") from error
    _require_known("prompt", token_ids, vocab_size)
    _require_known("stop_token_ids", sampling.stop_token_ids, vocab_size)
    _require_known("logit_bias", sampling.logit_bias, vocab_size)
    seed = sampling.seed if sampling.seed is not None else secrets.randbelow(MAX_SEED + 1)
    stop_ids = sampling.stop_token_ids
    if not sampling.ignore_eos:
        stop_ids = stop_ids.union(eos_token_ids)
    if not prefix_cache:
        salt = secrets.token_bytes(16)
    return [
        Request(
            id=request_id,
            index=index,
            token_ids=token_ids.copy(),
            sampling=sampling,
            seed=completion_seed(seed, index),
            stop_ids=stop_ids,
            salt=salt,
            priority=priority,
            deadline=deadline,
            token_mask=new_token_mask() if new_token_mask else None,
        )
        for index in range(sampling.n)
    ]


def _require_known(field: str, token_ids: Collection[int], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise InvalidRequest(f"{field} holds token {wrong}, the vocabulary has ids 0 to {vocab_size - 1}", field=field)
