"""From the logits of a step to its new tokens: what requests ask for, brought to the sampling kernels.

In order, for one row: penalties, logit bias, stop tokens forbidden before min_tokens or what the token mask forbids,
temperature, top_k, top_p, min_p, the choice. Log-probabilities are of the logits as the model gave them.

A row's token depends on its logits and its request alone; how rows are grouped is only a matter of speed.

Legend: N rows of a step, R rows of a chunk, M rows with a token mask, V vocabulary, W words of a bitmask, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baleen.errors import BaleenError
from kernels.sampling import noise, reference
from workers.engine.batch import SampledToken
from workers.engine.bitmasks import Bitmasks
from workers.engine.request import Request
from workers.engine.token_counts import TokenCounts
from workers.engine.token_mask import TokenMask

CHUNK_NUMBERS = 65536
"""Logits worked on at a time, so that what passes between two operations stays in the processor's cache."""

_NEVER = float("-inf")

LEAST = 1e-30
"""Divisors are raised to this, so that none becomes 0 in float32."""


class SamplingError(BaleenError):
    """One request's logits leave no token to choose. No row of the step was sampled."""

    def __init__(self, request: Request, problem: str) -> None:
        super().__init__(f"{request.key}: {problem} at output position {request.num_output}")
        self.request_id = request.id
        self.index = request.index


class DeadEnd(SamplingError):
    """One request's token mask allows nothing any more."""


class Row:
    """What one request asks for, worked out once.

    place: its row in this step's logits. masked: its row in this step's bitmasks, -1 if it has none.
    """

    __slots__ = ("bias", "counts", "filters", "masked", "place", "request", "seed_words", "stop_ids", "top_k")

    def __init__(self, request: Request, vocab_size: int, device: torch.device) -> None:
        sampling = request.sampling
        self.place = 0
        self.masked = -1
        self.request = request
        self.seed_words = noise.seed_words(request.seed)
        log_min_p = math.log(sampling.min_p) if sampling.min_p else _NEVER
        self.filters = (max(sampling.temperature, LEAST), sampling.top_p, log_min_p)
        self.top_k = sampling.top_k if sampling.top_k < vocab_size else 0
        self.stop_ids = tuple(request.stop_ids)
        self.bias: tuple[Tensor, Tensor] | None = None
        if sampling.logit_bias:
            ids, values = zip(*sampling.logit_bias.items(), strict=True)
            self.bias = torch.tensor(ids, device=device), torch.tensor(values, dtype=torch.float32, device=device)
        self.counts: TokenCounts | None = None
        if sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty:
            prompt = request.token_ids[: request.num_prompt] if sampling.repetition_penalty != 1 else ()
            self.counts = TokenCounts(prompt, output_start=request.num_prompt)

    def forbids_stop(self) -> bool:
        """Whether the tokens that end the request may not come yet; where a token mask binds, that is its matter."""
        request = self.request
        if self.is_masked():
            return False
        return len(request.token_ids) - request.num_prompt < request.sampling.min_tokens and bool(self.stop_ids)

    def adjusts(self) -> bool:
        """Whether this step's logits change before the choice."""
        return self.counts is not None or self.bias is not None or self.is_masked() or self.forbids_stop()

    def is_masked(self) -> bool:
        """Whether a token mask forbids something in this step."""
        return self.request.token_mask is not None and self.request.token_mask.binds


class Sampler:
    """Chooses the next token of every row.

    It keeps what it worked out for the requests of the last step; all of it can be worked out again.
    """

    def __init__(self, vocab_size: int) -> None:
        assert 0 < vocab_size <= reference.MAX_VOCAB
        self._vocab_size = vocab_size
        self._chunk_rows = max(1, CHUNK_NUMBERS // vocab_size)
        self._rows: dict[Request, Row] = {}
        self._bitmasks = Bitmasks(vocab_size)
        self._bitmask_MW = torch.zeros((0, 0), dtype=torch.int32)

    @torch.inference_mode()
    def sample(self, logits_NV: Tensor, requests: Sequence[Request]) -> list[SampledToken]:
        """One token for each request. logits_NV: float32, contiguous, the last position of each; it is not changed.

        Raises SamplingError, which names the request, if a logit is NaN or +inf, or if nothing is allowed; DeadEnd if
        that is the token mask's doing.
        """
        assert logits_NV.shape == (len(requests), self._vocab_size)
        assert logits_NV.dtype == torch.float32 and logits_NV.is_contiguous()
        if not requests:
            return []
        rows = self._look_up(requests, logits_NV.device)
        # before the logits are looked at: a device may still be at work on them
        bitmask_MW = fill_masks(rows, self._bitmasks)
        if bitmask_MW is not None:
            self._bitmask_MW = torch.from_numpy(bitmask_MW).to(logits_NV.device)
        token_ids = _most_likely(logits_NV, rows)
        greedy: list[Row] = []
        plain: list[Row] = []
        top_k: list[Row] = []
        for row in rows:
            if not row.request.sampling.greedy:
                (top_k if row.top_k else plain).append(row)
            elif row.adjusts():
                greedy.append(row)
        for group, choose in ((greedy, _most_likely), (plain, self._draw), (top_k, self._draw_top_k)):
            for start in range(0, len(group), self._chunk_rows):
                chunk = group[start : start + self._chunk_rows]
                for row, token_id in zip(chunk, choose(self._adjusted(logits_NV, chunk), chunk), strict=True):
                    token_ids[row.place] = token_id
        return with_log_probabilities(logits_NV, rows, token_ids, chunk_rows=self._chunk_rows)

    def _look_up(self, requests: Sequence[Request], device: torch.device) -> list[Row]:
        known = self._rows
        rows = [known.get(request) or Row(request, self._vocab_size, device) for request in requests]
        for place, row in enumerate(rows):
            row.place = place
        self._rows = dict(zip(requests, rows, strict=True))
        return rows

    def _adjusted(self, logits_NV: Tensor, rows: list[Row]) -> Tensor:
        """Logits [R, V] of these rows with penalties, bias and what is forbidden; a copy only where one is needed."""
        places = [row.place for row in rows]
        changed = [row for row in rows if row.adjusts()]
        if len(places) == logits_NV.shape[0]:
            x_RV = logits_NV.clone() if changed else logits_NV
        elif len(places) == 1:
            x_RV = logits_NV[places[0] : places[0] + 1]
            x_RV = x_RV.clone() if changed else x_RV
        else:
            x_RV = logits_NV[torch.tensor(places, device=logits_NV.device)]
        if changed:
            self._adjust_(x_RV, rows)
            require_finite(x_RV.amax(-1).tolist(), rows)
        return x_RV

    def _adjust_(self, x_RV: Tensor, rows: list[Row]) -> None:
        forbidden: list[int] = []
        for index, row in enumerate(rows):
            if row.counts is not None:
                _penalise_(x_RV[index], row.request, row.counts)
            if row.bias is not None:
                x_RV[index].index_add_(0, *row.bias)
            if row.masked >= 0:
                reference.forbid_(x_RV[index], self._bitmask_MW[row.masked])
            if row.forbids_stop():
                forbidden += [index * self._vocab_size + token for token in row.stop_ids]
        if forbidden:
            x_RV.view(-1).index_fill_(0, torch.tensor(forbidden, device=x_RV.device), _NEVER)

    def _draw(self, x_RV: Tensor, rows: list[Row]) -> list[int]:
        """Token ids of rows without top_k."""
        ids_RC = torch.arange(self._vocab_size, device=x_RV.device)[None]
        if self._chunk_rows == 1:
            x_RV, ids_RC = reference.restrict_to_contenders(x_RV, _filters(rows, x_RV.device)[0])
        return _choose(x_RV, ids_RC, rows)

    def _draw_top_k(self, x_RV: Tensor, rows: list[Row]) -> list[int]:
        """Token ids of rows with top_k."""
        return _choose(*reference.restrict_to_top_k(x_RV, [row.top_k for row in rows]), rows)


def fill_masks(rows: list[Row], bitmasks: Bitmasks) -> npt.NDArray[np.int32] | None:
    """Work out the token masks of a step, all together: [M, W] int32, row.masked in it; None without any.

    Raises DeadEnd where one allows nothing.
    """
    masked: list[Row] = []
    masks: list[TokenMask] = []
    for row in rows:
        row.masked = -1
        mask = row.request.token_mask
        if mask is not None and mask.binds:
            row.masked = len(masks)
            masked.append(row)
            masks.append(mask)
    if not masks:
        return None
    bitmask_MW = bitmasks.fill(masks)
    alive_M = bitmask_MW.any(-1)
    if not alive_M.all():
        place = int(alive_M.argmin())
        cause = f"the constraint allows no token: {masks[place].problem}".removesuffix(": ")
        raise DeadEnd(masked[place].request, cause)
    return bitmask_MW


def with_log_probabilities(
    logits_NV: Tensor, rows: list[Row], token_ids: list[int], *, chunk_rows: int
) -> list[SampledToken]:
    """The step's tokens, with log-probabilities where they were asked for, so many rows at a time."""
    tokens = [SampledToken(token_id) for token_id in token_ids]
    asking = [row for row in rows if row.request.sampling.logprobs is not None]
    for start in range(0, len(asking), chunk_rows):
        chunk = asking[start : start + chunk_rows]
        places = torch.tensor([row.place for row in chunk], device=logits_NV.device)
        num_top = [row.request.sampling.logprobs or 0 for row in chunk]
        x_RV = logits_NV[places]
        sampled_R1 = torch.tensor([[token_ids[row.place]] for row in chunk], device=logits_NV.device)
        most = min(max(num_top), logits_NV.shape[1])
        ids_RK = torch.cat((sampled_R1, reference.top_tokens(x_RV, most)), dim=1)
        reported = zip(chunk, num_top, ids_RK.tolist(), reference.log_probabilities(x_RV, ids_RK).tolist(), strict=True)
        for row, count, ids, values in reported:
            top = tuple(zip(ids[1 : count + 1], values[1 : count + 1], strict=True))
            tokens[row.place] = SampledToken(ids[0], values[0], top)
    return tokens


def _most_likely(x_RV: Tensor, rows: list[Row]) -> list[int]:
    ids_R = reference.greedy(x_RV)
    require_finite(x_RV.gather(1, ids_R[:, None])[:, 0].tolist(), rows)
    return ids_R.tolist()


def require_finite(best: list[float], rows: list[Row]) -> None:
    """Refuse to choose where the best logit is NaN, or +inf, or -inf since nothing is allowed. Raises SamplingError."""
    if not math.isfinite(sum(best)):
        row, value = next((row, value) for row, value in zip(rows, best, strict=True) if not math.isfinite(value))
        raise SamplingError(row.request, f"no token can be chosen, the best logit is {value}")


def _choose(x_RC: Tensor, ids_RC: Tensor, rows: list[Row]) -> list[int]:
    device = x_RC.device
    words_R2 = torch.tensor([row.seed_words for row in rows], dtype=torch.int32, device=device)
    positions_R = torch.tensor([row.request.num_output for row in rows], dtype=torch.int32, device=device)
    keys_R2 = noise.row_keys(words_R2, positions_R)
    return reference.choose(x_RC, ids_RC, keys_R2, *_filters(rows, device)).tolist()


def _filters(rows: list[Row], device: torch.device) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Temperature, and top_p and ln(min_p) where a row has one."""
    filters_R3 = torch.tensor([row.filters for row in rows], dtype=torch.float64, device=device)
    temperature_R, top_p_R, log_min_p_R = filters_R3.unbind(1)
    return (
        temperature_R.float(),
        top_p_R if any(row.filters[1] < 1 for row in rows) else None,
        log_min_p_R if any(row.filters[2] > _NEVER for row in rows) else None,
    )


def _penalise_(x_V: Tensor, request: Request, counts: TokenCounts) -> None:
    sampling = request.sampling
    ids_K, counts_K = counts.update(request.token_ids)
    repetition = max(sampling.repetition_penalty, LEAST)
    reference.penalise_(
        x_V,
        ids_K.to(x_V.device),
        counts_K.to(x_V.device),
        repetition,
        sampling.presence_penalty,
        sampling.frequency_penalty,
    )
