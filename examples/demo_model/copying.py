"""Where training begins: heads that find an earlier occurrence of the last tokens, and propose what followed there.

Copying is what every task here rests on, and the slowest thing to learn from nothing. So the first two layers begin as
the circuit that training finds in the end (Olsson et al., In-context Learning and Induction Heads, 2022). The hidden
dimensions begin as a constant and five slots: the token, what stood one, two and three places back, and a proposal for
the next token, which the head reads. Heads of layer 0 fill the slots of earlier tokens; heads of layer 1 look where
one, two or three of them agree with the present ones, and propose what is found there. From then on all is learnt.

Legend: V vocabulary, W slot width, P rotated pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from baleen.model_spec import ModelSpec
from kernels.rope.reference import softmax_scale, yarn_inverse_frequencies
from workers.model.names import layer_prefix

DISTANCES = (1, 2, 3)
"""How far the heads of layer 0 look back."""

NUM_SLOTS = 2 + len(DISTANCES)
CONSTANT = 1.5
"""Value of hidden dimension 0 for every token: heads that look by place alone ask with it."""

TOKEN_LENGTH = 4.8
SHARPNESS = 45.0
"""Score of the place that a head of layer 0 looks at; its neighbours have a few less."""

TRACE_LENGTH = 4.0
PROPOSAL_LENGTH = 12.0
HEAD = 0.25
"""The head's rows begin as so much of the embedding's, read from the proposal."""

REST = 0.3
"""How much of their random beginning the remaining rows of these heads keep."""


def fits(spec: ModelSpec) -> bool:
    """Whether the sizes leave room for the circuit."""
    width = (spec.hidden_size - 1) // NUM_SLOTS
    return (
        spec.num_layers >= 2
        and spec.num_heads >= len(DISTANCES)
        and spec.q_lora_rank == spec.hidden_size
        and 2 * width <= min(spec.v_head_dim, spec.qk_nope_head_dim)
        and spec.kv_lora_rank >= spec.hidden_size
        and width >= 32
    )


@torch.no_grad()
def begin_with_copying_heads(spec: ModelSpec, parameters: dict[str, torch.Tensor], seed: int) -> None:
    """Overwrite embedding, head, and the attention of the first two layers."""
    assert fits(spec)
    generator = torch.Generator().manual_seed(seed)
    slots = _Slots((spec.hidden_size - 1) // NUM_SLOTS)
    codes_VW = torch.randn(spec.vocab_size, slots.width, generator=generator) * TOKEN_LENGTH / math.sqrt(slots.width)
    embedding, head = parameters["model.embed_tokens.weight"], parameters["lm_head.weight"]
    embedding *= 1 / 3
    embedding[:, 0] = CONSTANT
    embedding[:, slots.token] = codes_VW
    head *= REST
    head[:, 0] = 0
    head[:, slots.proposal] = HEAD * codes_VW
    for layer in (0, 1):
        attention = layer_prefix(layer) + "self_attn."
        # latents begin as the hidden dimensions themselves, the ones beyond these at random
        parameters[attention + "q_a_proj.weight"].copy_(torch.eye(spec.hidden_size))
        kv_a = parameters[attention + "kv_a_proj_with_mqa.weight"]
        kv_a[: spec.hidden_size] = torch.eye(spec.hidden_size)
        kv_a[spec.kv_lora_rank :] *= REST
    _look_back(spec, parameters, slots)
    _propose(spec, parameters, slots, generator)


@dataclass(frozen=True, slots=True)
class _Slots:
    """Hidden dimensions by meaning."""

    width: int

    @property
    def token(self) -> slice:
        return slice(1, 1 + self.width)

    @property
    def proposal(self) -> slice:
        return slice(1 + (NUM_SLOTS - 1) * self.width, 1 + NUM_SLOTS * self.width)

    def back(self, distance: int) -> slice:
        """The slot of the token so many places back; 0 is the token itself."""
        return slice(1 + distance * self.width, 1 + (distance + 1) * self.width)


@dataclass(frozen=True, slots=True)
class _Head:
    """Rows of one head: views into q_b (unrotated, rotated), kv_b (keys, values), and columns of o."""

    query: torch.Tensor
    rotated: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    out: torch.Tensor


def _head(spec: ModelSpec, parameters: dict[str, torch.Tensor], layer: int, head: int) -> _Head:
    """A head whose random beginning is made small."""
    attention = layer_prefix(layer) + "self_attn."
    q = parameters[attention + "q_b_proj.weight"].view(spec.num_heads, spec.qk_head_dim, -1)[head]
    kv = parameters[attention + "kv_b_proj.weight"].view(spec.num_heads, -1, spec.kv_lora_rank)[head]
    o = parameters[attention + "o_proj.weight"].view(spec.hidden_size, spec.num_heads, spec.v_head_dim)[:, head]
    q *= REST
    kv *= REST
    o *= REST
    nope = spec.qk_nope_head_dim
    return _Head(q[:nope], q[nope:], kv[:nope], kv[nope:], o)


def _look_back(spec: ModelSpec, parameters: dict[str, torch.Tensor], slots: _Slots) -> None:
    frequencies_P = yarn_inverse_frequencies(spec.rope, spec.qk_rope_head_dim)
    # slow pairs do not tell near places apart
    strength_P = (frequencies_P > 0.1).float()
    constant = CONSTANT / math.sqrt((CONSTANT**2 + TOKEN_LENGTH**2) / spec.hidden_size)
    score = softmax_scale(spec.rope, spec.qk_head_dim) * float(strength_P.sum()) * constant**2
    amplitude_P = strength_P * math.sqrt(SHARPNESS / score)
    kv_a = parameters[layer_prefix(0) + "self_attn.kv_a_proj_with_mqa.weight"]
    kv_a[spec.kv_lora_rank :: 2, 0] = amplitude_P
    for number, distance in enumerate(DISTANCES):
        head = _head(spec, parameters, 0, number)
        angle_P = frequencies_P * distance
        head.rotated[::2, 0] = amplitude_P * angle_P.cos()
        head.rotated[1::2, 0] = -amplitude_P * angle_P.sin()
        _carry(head, slots, slots.back(distance), TRACE_LENGTH / 16)


def _propose(spec: ModelSpec, parameters: dict[str, torch.Tensor], slots: _Slots, generator: torch.Generator) -> None:
    nope = spec.qk_nope_head_dim
    for number, agreeing in enumerate(DISTANCES):
        head = _head(spec, parameters, 1, number)
        for place in range(agreeing):
            # what stands `place` back here is compared with what stands one place further back there
            basis = torch.linalg.qr(torch.randn(nope, nope, generator=generator))[0][:, : slots.width]
            head.query[:, slots.back(place)] = basis
            head.key[:, slots.back(place + 1)] = basis
        _carry(head, slots, slots.proposal, PROPOSAL_LENGTH / len(DISTANCES) / 10)


def _carry(head: _Head, slots: _Slots, target: slice, gain: float) -> None:
    """Carry the token of the place that is looked at into a slot. gain: by one over the length of normalised values."""
    same = torch.eye(slots.width)
    head.value[: slots.width] = 0
    head.value[: slots.width, slots.token] = same
    head.out[:, : slots.width] = 0
    head.out[target, : slots.width] = gain * same
