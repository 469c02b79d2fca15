"""Sampling worked out a second time, in numpy float64 and uint64 and from the definitions alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

_WORD = np.uint64(0xFFFFFFFF)


def mix(x: Words) -> Words:
    x = x ^ (x >> np.uint64(16))
    x = (x * np.uint64(0x21F0AAAD)) & _WORD
    x = x ^ (x >> np.uint64(15))
    x = (x * np.uint64(0xD35A2D97)) & _WORD
    return x ^ (x >> np.uint64(15))


def noise_bits(seed: int, position: int, token_ids: Sequence[int]) -> Words:
    low, high = np.uint64(seed % 2**32), np.uint64(seed // 2**32)
    a = mix((low + np.uint64(0x9E3779B9)) & _WORD)
    s1 = mix(high ^ a)
    s0 = mix((a + s1) & _WORD)
    k0, k1 = mix(s0 ^ np.uint64(position)), mix(s1 ^ np.uint64(position))
    return mix((mix(np.array(token_ids, dtype=np.uint64) ^ k0) + k1) & _WORD) // np.uint64(256)


def noise(seed: int, position: int, token_ids: Sequence[int]) -> Floats:
    uniform = (noise_bits(seed, position, token_ids).astype(np.longdouble) + np.longdouble(0.5)) / np.longdouble(2**24)
    gumbel = -np.log(-np.log(uniform))
    return (np.floor(gumbel * 2**18 + np.longdouble(0.5)) / 2**18).astype(np.float64)


def penalised(
    logits: Floats,
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    bias: Mapping[int, float] | None = None,
    forbidden: Collection[int] = (),
) -> Floats:
    x = logits.astype(np.float64)
    for token in set(prompt) | set(output):
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
    for token in set(output):
        x[token] -= presence + frequency * list(output).count(token)
    for token, value in (bias or {}).items():
        x[token] += value
    for token in forbidden:
        x[token] = -np.inf
    return x


def probabilities(
    logits: Floats, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Floats:
    """What each token is drawn with: 0 for those that a filter drops. One filter after the other, renormalised."""
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda token: (-logits[token], token))
    if top_k:
        order = order[:top_k]
        p = _only(p, order)
    if top_p < 1:
        kept, mass = [], 0.0
        for token in order:
            if mass >= top_p:
                break
            kept.append(token)
            mass += p[token]
        order = kept
        p = _only(p, order)
    if min_p:
        largest = p.max()
        p = _only(p, [token for token in order if p[token] >= min_p * largest])
    return p


def nearest_border(
    logits: Floats, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> float:
    """How near any filter is to deciding otherwise, in probability; a float32 computation may differ at 0."""
    p = probabilities(logits, temperature=temperature, top_k=top_k)
    order = sorted(range(len(p)), key=lambda token: (-logits[token], token))
    mass = np.cumsum(p[order])
    distances = [1.0]
    if top_p < 1:
        distances.append(float(np.abs(mass - top_p).min()))
    if 0 < min_p < 1:
        distances.append(float(np.abs(p / p.max() - min_p).min()))
    return min(distances)


def draw(p: Floats, logits: Floats, temperature: float, seed: int, position: int) -> tuple[int, float]:
    """The token that Gumbel-max draws from p's tokens, and by how much it wins."""
    score = np.where(p > 0, logits.astype(np.float64) / temperature + noise(seed, position, range(len(p))), -np.inf)
    order = np.argsort(-score, kind="stable")
    lead = float(score[order[0]] - score[order[1]]) if len(order) > 1 else np.inf
    return int(order[0]), lead


def chi_square(counts: Sequence[int], expected: Sequence[float]) -> tuple[float, float]:
    """Pearson's statistic, and the bound that chance exceeds once in 10^6 (Wilson and Hilferty, z = 4.75).

    Cells that expect less than 5 are put together.
    """
    pairs = sorted(zip(expected, counts, strict=True), reverse=True)
    cells = [[e, c] for e, c in pairs if e >= 5]
    rest = [sum(e for e, _ in pairs if e < 5), sum(c for e, c in pairs if e < 5)]
    if rest[0] >= 5 or not cells:
        cells.append(rest)
    else:
        cells[-1] = [cells[-1][0] + rest[0], cells[-1][1] + rest[1]]
    statistic = sum((c - e) ** 2 / e for e, c in cells)
    k = max(1, len(cells) - 1)
    return statistic, k * (1 - 2 / (9 * k) + 4.75 * (2 / (9 * k)) ** 0.5) ** 3


def _only(p: Floats, tokens: Collection[int]) -> Floats:
    kept = np.zeros_like(p)
    kept[list(tokens)] = p[list(tokens)]
    return kept / kept.sum()
