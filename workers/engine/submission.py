"""From one submission to its n requests: validated against the model, each with its own seed."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Collection, Sequence

from baleen.blocks import BLOCK_TOKENS, shareable_blocks
from baleen.errors import InvalidRequest
from baleen.ids import RequestId
from baleen.sampling import MAX_SEED, SamplingParams
from baleen.seeds import completion_seed
from workers.engine.prompt_scores import PromptScores
from workers.engine.request import Request
from workers.engine.token_mask import TokenMask


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
    token_masks: Sequence[TokenMask] = (),
    num_delivered: int = 0,
    prompt_logprobs_from: int = 0,
) -> list[Request]:
    """The `sampling.n` requests of one submission, in order of their index.

    num_delivered: tokens at the end of `prompt_ids` that are output already, of a completion that goes on alone.

    prompt_logprobs_from: place of the first token whose log-probabilities are wanted, where `sampling` asks for them.

    Without a seed in `sampling` a random one is drawn. Without `prefix_cache` the salt is made unique, so that only
    these requests share blocks with each other. token_masks: one for each completion, past the delivered tokens.
    Raises InvalidRequest for a prompt, stop token or biased token outside the vocabulary, for delivered tokens that
    leave nothing to continue, and for a constraint or a budget without masks, which nobody could keep to.
    """
    assert len(token_masks) in (0, sampling.n)
    token_ids = _checked_prompt(prompt_ids, vocab_size)
    is_constrained = sampling.constraint is not None
    if (is_constrained or sampling.budget is not None) and not token_masks:
        field = "constraint" if is_constrained else "budget"
        raise InvalidRequest(f"{field} needs a tokenizer, the model of this rank has none", field=field)
    _require_known("stop_token_ids", sampling.stop_token_ids, vocab_size)
    _require_known("logit_bias", sampling.logit_bias, vocab_size)
    seed = sampling.seed if sampling.seed is not None else secrets.randbelow(MAX_SEED + 1)
    stop_ids = sampling.stop_token_ids
    if not sampling.ignore_eos or is_constrained:
        # a constraint lets the model's own end come only where it is one
        stop_ids = stop_ids.union(eos_token_ids)
    _require_continuable(token_ids, num_delivered, sampling, stop_ids)
    if not prefix_cache:
        salt = secrets.token_bytes(16)
    scores = _prompt_scores(sampling, token_ids, len(token_ids) - num_delivered, prompt_logprobs_from)
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
            token_mask=token_masks[index] if token_masks else None,
            num_delivered=num_delivered,
            prompt_scores=scores,
        )
        for index in range(sampling.n)
    ]


def prefill_request(
    request_id: RequestId,
    prompt_ids: Sequence[int],
    *,
    vocab_size: int,
    prefix_cache: bool = True,
    salt: bytes = b"",
    priority: int = 0,
    deadline: float | None = None,
    prompt_logprobs: int | None = None,
    prompt_logprobs_from: int = 0,
) -> Request | None:
    """A request that computes the whole blocks which one of `prompt_ids` can share; None if there are none.

    prompt_logprobs: as in SamplingParams, of the tokens that follow on those that it computes. Raises InvalidRequest
    for a prompt outside the vocabulary.
    """
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=prompt_logprobs)
    token_ids = _checked_prompt(prompt_ids, vocab_size)
    num_blocks = shareable_blocks(len(token_ids))
    if not num_blocks:
        return None
    return Request(
        id=request_id,
        index=0,
        token_ids=token_ids[: num_blocks * BLOCK_TOKENS],
        sampling=sampling,
        seed=0,
        salt=salt if prefix_cache else secrets.token_bytes(16),
        priority=priority,
        deadline=deadline,
        prefill_only=True,
        prompt_scores=_prompt_scores(sampling, token_ids, len(token_ids), prompt_logprobs_from),
    )


def _prompt_scores(sampling: SamplingParams, token_ids: list[int], num_prompt: int, start: int) -> PromptScores | None:
    if sampling.prompt_logprobs is None:
        return None
    return PromptScores(token_ids[:num_prompt], sampling.prompt_logprobs, start)


def _checked_prompt(prompt_ids: Sequence[int], vocab_size: int) -> list[int]:
    if not prompt_ids:
        raise InvalidRequest("prompt has 0 tokens, at least 1 is needed", field="prompt")
    try:
        token_ids = array("q", prompt_ids).tolist()
    except (TypeError, OverflowError) as error:
        raise InvalidRequest(f"prompt holds something that is no token id: {error}", field="prompt") from error
    _require_known("prompt", token_ids, vocab_size)
    return token_ids


def _require_continuable(
    token_ids: list[int], num_delivered: int, sampling: SamplingParams, stop_ids: frozenset[int]
) -> None:
    """Raise InvalidRequest unless the completion, with `num_delivered` tokens of output, has not ended yet."""
    if not num_delivered:
        return
    if not 0 < num_delivered < len(token_ids):
        raise InvalidRequest(
            f"num_delivered is {num_delivered}, must be from 0 to {len(token_ids) - 1}", field="num_delivered"
        )
    if sampling.n != 1:
        raise InvalidRequest(f"n is {sampling.n}, each completion is continued alone", field="num_delivered")
    ended = token_ids[-1] in stop_ids and (sampling.constraint is not None or num_delivered > sampling.min_tokens)
    if ended or num_delivered >= sampling.max_tokens:
        raise InvalidRequest(
            f"{num_delivered} delivered tokens of at most {sampling.max_tokens}, "
            f"the last one {token_ids[-1]}: the completion has ended",
            field="num_delivered",
        )


def _require_known(field: str, token_ids: Collection[int], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise InvalidRequest(f"{field} holds token {wrong}, the vocabulary has ids 0 to {vocab_size - 1}", field=field)
