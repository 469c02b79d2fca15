"""Sampling on a device: what all rows ask for goes over in one copy, and the tokens come back in one.

The tokens are those of `workers.engine.sampler`. Log-probabilities are torch's, on the device.

Legend: N rows of a step, R rows whose logits change, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from kernels.sampling.adjust import adjust_
from kernels.sampling.rows import Adjustments, Draws
from kernels.sampling.sample import sample_tokens
from workers.engine.batch import SampledToken
from workers.engine.bitmasks import Bitmasks
from workers.engine.request import Request
from workers.engine.sampler import LEAST, Row, fill_masks, require_finite, with_log_probabilities
from workers.staging import Staging

LOGPROB_ROWS = 16
"""Rows whose log-probabilities are worked out at a time, in float64."""

Arrays = tuple[npt.NDArray[np.generic], ...]


class DeviceSampler:
    """Chooses the next token of every row; keeps what it worked out for the requests of the last step."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._staging = Staging(device)
        self._rows: dict[Request, Row] = {}
        self._bitmasks = Bitmasks(vocab_size)

    @torch.inference_mode()
    def sample(self, logits_NV: torch.Tensor, requests: Sequence[Request]) -> list[SampledToken]:
        """One token for each request. logits: [N, V] float32, contiguous, not changed. Waits for the device once.

        Raises SamplingError, which names the request, if a logit is NaN or +inf, or if nothing is allowed.
        """
        if not requests:
            return []
        rows = self._look_up(requests)
        masks = fill_masks(rows, self._bitmasks)
        changed = [row for row in rows if row.adjusts()]
        draws = _draw_arrays(rows)
        uploaded = self._staging.upload(
            (*draws, *(_adjustment_arrays(changed, masks, self._vocab_size) if changed else ()))
        )
        filtered = any(not row.request.sampling.greedy and (row.top_k > 0 or row.filters[1] < 1) for row in rows)
        x_NV = logits_NV
        if changed:
            x_NV = logits_NV.clone()
            adjust_(x_NV, Adjustments(*uploaded[len(draws) :]))
        tokens_N, largest_N = sample_tokens(x_NV, _draws(uploaded, filtered))
        given_N = logits_NV.amax(-1) if changed else largest_N
        tokens, given, largest = torch.stack((tokens_N.double(), given_N.double(), largest_N.double())).tolist()
        require_finite(given, rows)
        require_finite(largest, rows)
        return with_log_probabilities(logits_NV, rows, [int(token) for token in tokens], chunk_rows=LOGPROB_ROWS)

    def _look_up(self, requests: Sequence[Request]) -> list[Row]:
        known = self._rows
        rows = [known.get(request) or Row(request, self._vocab_size, torch.device("cpu")) for request in requests]
        for place, row in enumerate(rows):
            row.place = place
        self._rows = dict(zip(requests, rows, strict=True))
        return rows


def _adjustment_arrays(rows: list[Row], masks: npt.NDArray[np.int32] | None, vocab_size: int) -> Arrays:
    """The arrays of `Adjustments`, in its order."""
    seen = [_seen(row) for row in rows]
    bias = [_bias(row) for row in rows]
    stops = [np.array(row.stop_ids if row.forbids_stop() else (), dtype=np.int32) for row in rows]
    penalties = np.array([_penalties(row) for row in rows], dtype=np.float32)
    return (
        np.array([row.place for row in rows], dtype=np.int32),
        _starts([ids for ids, _ in seen]),
        np.concatenate([ids for ids, _ in seen]),
        np.concatenate([counts for _, counts in seen]),
        penalties[:, 0],
        penalties[:, 1],
        penalties[:, 2],
        _starts([ids for ids, _ in bias]),
        np.concatenate([ids for ids, _ in bias]),
        np.concatenate([values for _, values in bias]),
        _starts(stops),
        np.concatenate(stops),
        np.array([row.masked for row in rows], dtype=np.int32),
        np.zeros((1, -(-vocab_size // 32)), dtype=np.int32) if masks is None else masks,
    )


def _draw_arrays(rows: list[Row]) -> Arrays:
    """The arrays of `Draws`, in its order."""
    greedy = [row.request.sampling.greedy for row in rows]
    filters = np.array([row.filters for row in rows], dtype=np.float64)
    return (
        np.where(greedy, 0, filters[:, 0]).astype(np.float32),
        np.array([row.top_k for row in rows], dtype=np.int32),
        filters[:, 1],
        filters[:, 2],
        np.array([row.seed_words for row in rows], dtype=np.int32),
        np.array([row.request.num_output for row in rows], dtype=np.int32),
    )


def _draws(uploaded: list[torch.Tensor], filtered: bool) -> Draws:
    temperature, top_k, top_p, log_min_p, seeds, positions = uploaded[:6]
    return Draws(temperature, top_k, top_p, log_min_p, seeds, positions, filtered)


def _seen(row: Row) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    if row.counts is None:
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    ids, counts = row.counts.update(row.request.token_ids)
    return ids.numpy().astype(np.int32), counts.numpy()


def _bias(row: Row) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    if row.bias is None:
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    ids, values = row.bias
    return ids.numpy().astype(np.int32), values.numpy()


def _penalties(row: Row) -> tuple[float, float, float]:
    """Repetition, presence and frequency; those that change nothing where a row has none."""
    sampling = row.request.sampling
    if row.counts is None:
        return 1.0, 0.0, 0.0
    return max(sampling.repetition_penalty, LEAST), sampling.presence_penalty, sampling.frequency_penalty


def _starts(parts: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    return np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32)
