"""Loading: fused slices hold the stored tensors, each rank has its experts, and nothing else is read."""

import dataclasses

import pytest
import torch

from baleen.errors import CheckpointError, ConfigError
from kernels.quant.weights import dequantise_weight
from tests.support.tiny_checkpoint import TINY_CONFIG, edit_tensors, make_tiny, stored_tensors
from workers.model.checkpoint import Checkpoint
from workers.model.formula import formula_tensor
from workers.model.loading import load_weights
from workers.model.names import tensor_rules
from workers.model.weights import MlpWeights, MoeWeights

HEADS, NOPE, VALUE, LATENT = 2, 16, 24, 128


def load(directory, *, rank=0, world_size=1, compute_dtype=torch.float32):
    with Checkpoint.open(directory) as checkpoint:
        return load_weights(checkpoint, rank=rank, world_size=world_size, compute_dtype=compute_dtype, progress=False)


def plain_values(directory):
    """Name to float32 values of every weight, scales multiplied in."""
    stored = stored_tensors(directory)
    values = {}
    for name, tensor in stored.items():
        if not name.endswith("_scale_inv"):
            scale = stored.get(name + "_scale_inv")
            values[name] = tensor.float() if scale is None else dequantise_weight(tensor, scale)
    return values


def expected_layers(values, local_experts):
    """Field by field, what each layer must hold, put together from the stored tensors."""
    for layer in range(TINY_CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."

        def of(name, prefix=prefix):
            return values[f"{prefix}{name}.weight"]

        by_head = of("self_attn.kv_b_proj").view(HEADS, NOPE + VALUE, LATENT)
        attention = {
            "qkv_a": torch.cat([of(f"self_attn.{part}") for part in ("q_a_proj", "kv_a_proj_with_mqa", "indexer.wk")]),
            "q_a_norm": of("self_attn.q_a_layernorm"),
            "kv_a_norm": of("self_attn.kv_a_layernorm"),
            "q_b": torch.cat([of("self_attn.q_b_proj"), of("self_attn.indexer.wq_b")]),
            "w_uk": torch.stack([by_head[head, :NOPE] for head in range(HEADS)]),
            "w_uv": torch.stack([by_head[head, NOPE:] for head in range(HEADS)]),
            "o": of("self_attn.o_proj"),
            "index_k_norm_weight": of("self_attn.indexer.k_norm"),
            "index_k_norm_bias": values[prefix + "self_attn.indexer.k_norm.bias"],
            "index_weights": of("self_attn.indexer.weights_proj"),
        }

        def mlp(place, of=of):
            return {
                "gate_up": torch.cat([of(place + "gate_proj"), of(place + "up_proj")]),
                "down": of(place + "down_proj"),
            }

        if layer < TINY_CONFIG["first_k_dense_replace"]:
            feed_forward = mlp("mlp.")
        else:
            experts = [mlp(f"mlp.experts.{expert}.") for expert in local_experts]
            feed_forward = {
                "gate": of("mlp.gate"),
                "bias": values[prefix + "mlp.gate.e_score_correction_bias"],
                "gate_up": torch.stack([expert["gate_up"] for expert in experts]),
                "down": torch.stack([expert["down"] for expert in experts]),
                "shared": mlp("mlp.shared_experts."),
            }
        yield {
            "input_norm": of("input_layernorm"),
            "attention": attention,
            "post_norm": of("post_attention_layernorm"),
            "mlp": feed_forward,
        }


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        assert found.shape == expected.shape
        assert found.is_contiguous()
        assert torch.equal(found, expected.to(found.dtype))
        return
    assert {field.name for field in dataclasses.fields(found)} == expected.keys()
    for name, part in expected.items():
        assert_same(getattr(found, name), part)


def vary_scales(tensors):
    """Give every block a scale of its own; the formula's numbers have the same scale almost everywhere."""
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        tensors[name] *= torch.arange(1.0, 1.0 + tensors[name].numel()).view(tensors[name].shape)


def tensors_of(weights):
    """Every tensor in a structure of dataclasses and tuples, by path."""
    if isinstance(weights, torch.Tensor):
        yield "", weights
    elif isinstance(weights, tuple):
        for number, part in enumerate(weights):
            yield from ((f".{number}{path}", tensor) for path, tensor in tensors_of(part))
    elif dataclasses.is_dataclass(weights):
        for field in dataclasses.fields(weights):
            yield from ((f".{field.name}{path}", tensor) for path, tensor in tensors_of(getattr(weights, field.name)))


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8"])
def test_fused_weights_hold_the_stored_tensors(tmp_path, dtype, compute_dtype):
    directory = make_tiny(tmp_path, dtype=dtype)
    edit_tensors(directory, vary_scales)
    weights, _ = load(directory, compute_dtype=compute_dtype)
    values = plain_values(directory)
    assert_same(weights.embed, values["model.embed_tokens.weight"])
    assert_same(weights.norm, values["model.norm.weight"])
    assert_same(weights.lm_head, values["lm_head.weight"])
    for layer, expected in zip(weights.layers, expected_layers(values, range(8)), strict=True):
        assert_same(layer, expected)


@pytest.mark.parametrize("formula", ["scaled", "flat"])
def test_float32_weights_are_the_formula_s(tmp_path, formula):
    weights, _ = load(make_tiny(tmp_path, dtype="float32", formula=formula, seed=3))
    values = {rule.name: formula_tensor(rule, formula=formula, seed=3) for rule in tensor_rules(weights.spec)}
    for layer, expected in zip(weights.layers, expected_layers(values, range(8)), strict=True):
        assert_same(layer, expected)


def test_norms_gate_and_index_weights_stay_float32(tmp_path):
    weights, _ = load(make_tiny(tmp_path, dtype="float8"), compute_dtype=torch.bfloat16)
    float32 = {path.rsplit(".", 1)[1] for path, tensor in tensors_of(weights) if tensor.dtype == torch.float32}
    assert float32 == {
        "input_norm",
        "post_norm",
        "norm",
        "q_a_norm",
        "kv_a_norm",
        "index_k_norm_weight",
        "index_k_norm_bias",
        "index_weights",
        "gate",
        "bias",
    }
    others = {tensor.dtype for path, tensor in tensors_of(weights) if path.rsplit(".", 1)[1] not in float32}
    assert others == {torch.bfloat16}


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_hold_every_expert_once(tmp_path, world_size):
    directory = make_tiny(tmp_path, dtype="float8", num_shards=3)
    loaded = [load(directory, rank=rank, world_size=world_size)[0] for rank in range(world_size)]
    assert [expert for weights in loaded for expert in weights.local_experts] == list(range(8))
    values = plain_values(directory)
    for weights in loaded:
        assert len(weights.local_experts) == 8 // world_size
        for layer, expected in zip(weights.layers, expected_layers(values, weights.local_experts), strict=True):
            assert_same(layer, expected)
    assert len({weights.fingerprint for weights in loaded}) == 1


def test_only_the_rank_s_own_experts_are_read(tmp_path):
    directory = make_tiny(tmp_path, dtype="float8", num_nextn_predict_layers=1)
    with Checkpoint.open(directory) as checkpoint:
        read = []
        original = checkpoint.read
        # The fingerprint samples other tensors too; only what loading reads is counted.
        _, whole = load_weights(checkpoint, rank=0, world_size=1, compute_dtype=torch.float32, progress=False)
        checkpoint.read = lambda name: read.append(name) or original(name)
        _, times = load_weights(checkpoint, rank=1, world_size=4, compute_dtype=torch.float32, progress=False)
    loaded = read[len(checkpoint.tensors) :]
    assert len(loaded) == len(set(loaded)), "a tensor was read twice"
    experts = {int(name.split(".experts.")[1].split(".")[0]) for name in loaded if ".experts." in name}
    assert experts == {2, 3}
    assert not any(name.startswith("model.layers.2.") for name in loaded)
    stored = stored_tensors(directory)
    assert times.num_bytes == sum(stored[name].nbytes for name in loaded)
    assert times.num_bytes < whole.num_bytes


def test_weights_outlive_the_checkpoint_s_files(tmp_path):
    directory = make_tiny(tmp_path, dtype="float32")
    weights, _ = load(directory)
    before = weights.embed.clone()
    for path in directory.glob("*.safetensors"):
        path.unlink()
    assert torch.equal(weights.embed, before)
    with open("/proc/self/maps") as maps:
        assert not any(str(directory) in line for line in maps)


def test_large_tensors_are_converted_piece_by_piece(tmp_path, monkeypatch):
    directory = make_tiny(tmp_path, dtype="float8", vocab_size=700, moe_intermediate_size=300)
    edit_tensors(directory, vary_scales)
    whole, _ = load(directory)
    monkeypatch.setattr("workers.model.loading._PIECE_ELEMENTS", 1)
    pieces, _ = load(directory)
    for (path, first), (_, second) in zip(tensors_of(whole), tensors_of(pieces), strict=True):
        assert torch.equal(first, second), path


def test_without_shared_experts(tmp_path):
    weights, _ = load(make_tiny(tmp_path, n_shared_experts=0))
    assert isinstance(weights.layers[0].mlp, MlpWeights)
    assert isinstance(weights.layers[1].mlp, MoeWeights)
    assert weights.layers[1].mlp.shared is None


def test_wider_shared_expert(tmp_path):
    weights, _ = load(make_tiny(tmp_path, n_shared_experts=3))
    assert weights.layers[1].mlp.shared.gate_up.shape == (2 * 3 * 32, 64)


@pytest.mark.parametrize("world_size", [0, 3, 16])
def test_world_size_must_divide_the_experts(tmp_path, world_size):
    with pytest.raises(ConfigError, match=f"world_size is {world_size}, must divide the model's 8 experts"):
        load(make_tiny(tmp_path), world_size=world_size)


@pytest.mark.parametrize("rank", [-1, 2])
def test_rank_must_be_in_the_group(tmp_path, rank):
    with pytest.raises(ConfigError, match=f"rank is {rank}, must be from 0 to 1"):
        load(make_tiny(tmp_path), rank=rank, world_size=2)


def test_damaged_checkpoint_is_refused_before_loading(tmp_path):
    directory = make_tiny(tmp_path)
    edit_tensors(directory, lambda tensors: tensors.pop("lm_head.weight", None))
    with pytest.raises(CheckpointError, match=r"lm_head.weight: missing"):
        load(directory)


def test_times_name_every_part(tmp_path):
    _, times = load(make_tiny(tmp_path))
    assert times.open_s > 0
    assert times.read_s > 0
    assert times.convert_s > 0


def test_a_bar_is_drawn_on_terminals_only(tmp_path, capfd):
    with Checkpoint.open(make_tiny(tmp_path)) as checkpoint:
        load_weights(checkpoint, rank=0, world_size=1, compute_dtype=torch.float32, progress=True)
    assert capfd.readouterr() == ("", "")
