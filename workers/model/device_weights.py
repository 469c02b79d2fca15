"""One rank's weights on its device, as the checkpoint stores them: float8 with its scales, or bfloat16.

Legend: D hidden size, V vocabulary, H heads, E experts, L experts of this rank, I inner width of an MLP, N index heads,
X index head width, Q query latent, C key-value latent, R rotated width, n unrotated width, v value width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from baleen.model_spec import QUANT_BLOCK, ModelSpec, scale_shape
from kernels.cache.reference import KeyNorms
from kernels.quant.scaled import Scaled
from workers.model.allocation import Allocation, Places
from workers.model.names import BFLOAT16, FLOAT8
from workers.model.weights import RankWeights

INDEX_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class DeviceAttention:
    """One layer's attention. norms and index_weights are float32; w_uk and w_uv are bfloat16, multiplied out.

    qkv_a: [Q + X + C + R, D], rows of q_a_proj, indexer.wk and kv_a_proj_with_mqa. q_b: [H*(n + R) + N*X, Q]. w_uk:
    [H, n, C]. w_uv: [H, v, C]. o: [D, H*v]. index_weights: [N, D].
    """

    qkv_a: Scaled
    norms: KeyNorms
    q_b: Scaled
    w_uk: torch.Tensor
    w_uv: torch.Tensor
    o: Scaled
    index_weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class DeviceMlp:
    """gate_up: [1, 2*I, D], gate rows, then up rows. down: [1, D, I]. One expert, as `expert_mlps` takes them."""

    gate_up: Scaled
    down: Scaled


@dataclass(frozen=True, slots=True)
class DeviceMoe:
    """gate: [E, D], bfloat16 if stored so, else float32. bias: [E] float32. gate_up: [L, 2*I, D]. down: [L, D, I].
    shared: None without any.

    The scores are float32 sums of products that nothing rounds, as the official gate computes them from a float32 copy:
    two numbers of 8 bits of mantissa have an exact product. A copy would be twice the bytes for the same scores.
    """

    gate: torch.Tensor
    bias: torch.Tensor
    gate_up: Scaled
    down: Scaled
    shared: DeviceMlp | None


@dataclass(frozen=True, slots=True)
class DeviceWeights(RankWeights[DeviceAttention, DeviceMlp | DeviceMoe]):
    """What the kernels compute with; embed and lm_head are bfloat16."""


def allocate_device_weights(
    spec: ModelSpec, dtypes: Mapping[str, str], *, local_experts: range, device: torch.device, fingerprint: bytes
) -> tuple[DeviceWeights, Places]:
    """Allocate one rank's weights on `device`, unfilled ("meta" counts bytes only), and say what fills them.

    dtypes: stored dtype by tensor name. A matrix is float8 where all tensors that it is stacked of are stored so and
    each begins with a whole block of scales; else bfloat16, into which float8 is multiplied out.
    """
    allocation = _Allocation(spec, dtypes, local_experts, device)
    return allocation.weights(fingerprint), allocation.places


class _Allocation(Allocation[DeviceWeights, DeviceAttention, DeviceMlp | DeviceMoe]):
    """Attention and MLPs as the kernels take them. dtypes: stored dtype by tensor name."""

    def __init__(self, spec: ModelSpec, dtypes: Mapping[str, str], local_experts: range, device: torch.device) -> None:
        super().__init__(DeviceWeights, spec, local_experts, dtype=torch.bfloat16, device=device)
        self._dtypes = dtypes

    def attention(self, prefix: str) -> DeviceAttention:
        spec, width = self.spec, self.spec.hidden_size
        w_uk, w_uv = self.by_head(prefix)
        return DeviceAttention(
            qkv_a=self._stacked(
                width,
                [
                    (prefix + "q_a_proj.weight", spec.q_lora_rank),
                    (prefix + "indexer.wk.weight", spec.index_head_dim),
                    (prefix + "kv_a_proj_with_mqa.weight", spec.latent_dim),
                ],
            ),
            norms=KeyNorms(
                q=self.float32(prefix + "q_a_layernorm.weight", spec.q_lora_rank),
                latent=self.float32(prefix + "kv_a_layernorm.weight", spec.kv_lora_rank),
                key=self.float32(prefix + "indexer.k_norm.weight", spec.index_head_dim),
                key_bias=self.float32(prefix + "indexer.k_norm.bias", spec.index_head_dim),
                eps=spec.rms_norm_eps,
                key_eps=INDEX_NORM_EPS,
            ),
            q_b=self._stacked(
                spec.q_lora_rank,
                [
                    (prefix + "q_b_proj.weight", spec.num_heads * spec.qk_head_dim),
                    (prefix + "indexer.wq_b.weight", spec.index_heads * spec.index_head_dim),
                ],
            ),
            w_uk=w_uk,
            w_uv=w_uv,
            o=self._stacked(spec.num_heads * spec.v_head_dim, [(prefix + "o_proj.weight", width)]),
            index_weights=self.float32(prefix + "indexer.weights_proj.weight", spec.index_heads, width),
        )

    def mlp(self, prefix: str, inner: int) -> DeviceMlp:
        gate_up, down = self._experts([prefix], inner)
        return DeviceMlp(gate_up, down)

    def moe(self, prefix: str) -> DeviceMoe:
        spec, shared = self.spec, self.spec.num_shared_experts
        experts = [f"{prefix}experts.{expert}." for expert in self.local_experts]
        gate_up, down = self._experts(experts, spec.moe_intermediate_size)
        return DeviceMoe(
            gate=self._gate(prefix + "gate.weight"),
            bias=self.float32(prefix + "gate.e_score_correction_bias", spec.num_experts),
            gate_up=gate_up,
            down=down,
            shared=self.mlp(prefix + "shared_experts.", spec.moe_intermediate_size * shared) if shared else None,
        )

    def _gate(self, name: str) -> torch.Tensor:
        dtype = torch.bfloat16 if self._dtypes[name] == BFLOAT16 else torch.float32
        return self.place(name, self.empty(self.spec.num_experts, self.spec.hidden_size, dtype=dtype))

    def _experts(self, prefixes: list[str], inner: int) -> tuple[Scaled, Scaled]:
        """gate_up [L, 2 * I, D] and down [L, D, I]; both float8 or neither, as the kernels want them."""
        width = self.spec.hidden_size
        names = [prefix + kind for prefix in prefixes for kind in ("gate_proj", "up_proj", "down_proj")]
        float8 = self._is_float8([name + ".weight" for name in names], [inner, width], width)
        gate_up = self._matrices(len(prefixes), 2 * inner, width, float8=float8)
        down = self._matrices(len(prefixes), width, inner, float8=float8)
        for local, prefix in enumerate(prefixes):
            self._fill_rows(gate_up, local, 0, prefix + "gate_proj.weight", inner)
            self._fill_rows(gate_up, local, inner, prefix + "up_proj.weight", inner)
            self._fill_rows(down, local, 0, prefix + "down_proj.weight", width)
        return gate_up, down

    def _stacked(self, columns: int, parts: list[tuple[str, int]]) -> Scaled:
        """One matrix whose rows are those of several stored ones, given as name and number of rows."""
        float8 = self._is_float8([name for name, _ in parts], [rows for _, rows in parts[:-1]], columns)
        whole = self._matrices(1, sum(rows for _, rows in parts), columns, float8=float8)
        start = 0
        for name, rows in parts:
            self._fill_rows(whole, 0, start, name, rows)
            start += rows
        return Scaled(whole.values[0], None if whole.scales is None else whole.scales[0])

    def _is_float8(self, names: list[str], borders: list[int], columns: int) -> bool:
        whole = not any(size % QUANT_BLOCK for size in (*borders, columns))
        return whole and all(self._dtypes[name] == FLOAT8 for name in names)

    def _matrices(self, count: int, rows: int, columns: int, *, float8: bool) -> Scaled:
        if not float8:
            return Scaled(self.empty(count, rows, columns))
        scales = self.empty(count, *scale_shape(rows, columns), dtype=torch.float32)
        return Scaled(self.empty(count, rows, columns, dtype=torch.float8_e4m3fn), scales)

    def _fill_rows(self, whole: Scaled, index: int, start: int, name: str, rows: int) -> None:
        self.place(name, whole.values[index, start : start + rows])
        if whole.scales is not None:
            first = start // QUANT_BLOCK
            part = whole.scales[index, first : first + scale_shape(rows, 1)[0]]
            self.place(name.removesuffix("weight") + "weight_scale_inv", part)


def weight_bytes(weights: DeviceWeights) -> int:
    """Bytes of all tensors, also of unfilled ones on "meta"."""
    return sum(tensor.nbytes for tensor in _tensors(weights))


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for one in value for tensor in _tensors(one)]
    names = getattr(value, "__dataclass_fields__", {})
    return [tensor for name in names for tensor in _tensors(getattr(value, name))]
