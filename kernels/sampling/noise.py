"""The noise of sampling: one Gumbel variate for each (seed, output position, token id), the same on every machine.

All words are 32 bits wide and wrap around; >> is a logical shift.

    mix(x)   x ^= x >> 16;  x *= 0x21f0aaad;  x ^= x >> 15;  x *= 0xd35a2d97;  x ^= x >> 15
    seed     a = mix(low + 0x9e3779b9);  s1 = mix(high ^ a);  s0 = mix(a + s1)     low, high: halves of the seed
    row      k0 = mix(s0 ^ position);  k1 = mix(s1 ^ position)
    token    bits = mix(mix(token ^ k0) + k1) >> 8                                 0 to 2^24 - 1
    noise    g = round(-ln(-ln((bits + 1/2) / 2^24)) * 2^18) / 2^18

Every step up to `bits` is a bijection of its words, so rows differ whenever seed or position differ. The multipliers
of mix are Wellons' (Hash Prospector, two rounds). The uniform lies strictly inside (0, 1) and is exact in float64; g
is a multiple of 2^-18 between -2.853 and 17.329, hence exact in float32. A token of probability below about 2^-25 is
therefore never drawn.

The logarithms are float64, and rounding to 2^-18 hides how a library rounds them: over all 2^24 inputs no value lies
nearer to a rounding border than 2,900 times 2^-53 * (1 + |g|), so every library that is right to 1,000 units in the
last place gives the same noise, bit for bit.

Legend: N rows, C token ids, 2 words of a key.
"""

from __future__ import annotations

from torch import Tensor

NOISE_BITS = 24
NOISE_STEP = 2.0**-18
NOISE_MAX = 17.328678131103516
NOISE_MIN = -2.8523635864257812

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_MULTIPLIER_1 = 0x21F0AAAD
_MULTIPLIER_2 = 0xD35A2D97


def seed_words(seed: int) -> tuple[int, int]:
    """The two words of a 64-bit seed, as signed int32 values. No two seeds share both."""
    a = _mix_word((seed + _GOLDEN) & _WORD)
    s1 = _mix_word(((seed >> 32) & _WORD) ^ a)
    s0 = _mix_word((a + s1) & _WORD)
    return _signed(s0), _signed(s1)


def row_keys(words_N2: Tensor, positions_N: Tensor) -> Tensor:
    """Keys [N, 2] int32 of the rows' noise.

    words_N2: int32, `seed_words` of each row's seed. positions_N: int32, how many tokens the row has put out before.
    """
    return _mix(words_N2 ^ positions_N[:, None])


def noise_bits(keys_N2: Tensor, ids_NC: Tensor) -> Tensor:
    """Random integers [N, C] int32 in 0 to 2^24 - 1. ids_NC: int32 token ids, or [1, C] where all rows share them."""
    bits_NC = _mix(ids_NC ^ keys_N2[:, :1])
    bits_NC += keys_N2[:, 1:]
    return _shift(_mix(bits_NC), 32 - NOISE_BITS)


def gumbel_noise(keys_N2: Tensor, ids_NC: Tensor) -> Tensor:
    """Standard Gumbel variates [N, C] float32, multiples of `NOISE_STEP` in `NOISE_MIN` to `NOISE_MAX`."""
    g_NC = noise_bits(keys_N2, ids_NC).double()
    g_NC.add_(0.5).mul_(2.0**-NOISE_BITS).log_().neg_().log_()
    return g_NC.mul_(-1 / NOISE_STEP).round_().mul_(NOISE_STEP).float()


def _mix(x: Tensor) -> Tensor:
    """`mix` in place on int32, whose products wrap around as those of unsigned words do."""
    x ^= _shift(x, 16)
    x *= _MULTIPLIER_1
    x ^= _shift(x, 15)
    x *= _signed(_MULTIPLIER_2)
    x ^= _shift(x, 15)
    return x


def _shift(x: Tensor, places: int) -> Tensor:
    """Logical right shift of int32: the arithmetic one copies the sign, which the mask removes."""
    return (x >> places).bitwise_and_(_WORD >> places)


def _mix_word(x: int) -> int:
    x = (x ^ x >> 16) * _MULTIPLIER_1 & _WORD
    x = (x ^ x >> 15) * _MULTIPLIER_2 & _WORD
    return x ^ x >> 15


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
