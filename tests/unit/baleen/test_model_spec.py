"""config.json is read, and every wrong field is named."""

import json
from pathlib import Path

import pytest

from baleen.errors import CheckpointError
from baleen.model_spec import load_model_spec, model_spec_from_config, scale_shape

REAL_CONFIG = Path(__file__).parents[2] / "data" / "deepseek_v32_config.json"


def real_config(**changes):
    return json.loads(REAL_CONFIG.read_text()) | changes


def test_real_config_is_read():
    spec = model_spec_from_config(real_config())
    assert (spec.num_layers, spec.num_mtp_layers, spec.first_dense_layers, spec.num_moe_layers) == (61, 1, 3, 58)
    assert (spec.num_experts, spec.experts_per_token, spec.num_expert_groups, spec.topk_groups) == (256, 8, 8, 4)
    assert (spec.qk_head_dim, spec.latent_dim, spec.v_head_dim) == (192, 576, 128)
    assert (spec.index_heads, spec.index_head_dim, spec.index_topk) == (64, 128, 2048)
    assert (spec.bos_token_id, spec.eos_token_ids) == (0, (1,))
    assert spec.quantised
    assert (spec.rope.theta, spec.rope.factor, spec.rope.original_max_positions) == (10000.0, 40.0, 4096)


def test_without_quantization_config_weights_are_plain():
    config = real_config()
    del config["quantization_config"]
    assert not model_spec_from_config(config).quantised


def test_newer_rope_fields_are_read():
    config = real_config()
    theta = config.pop("rope_theta")
    scaling = config.pop("rope_scaling")
    kind = scaling.pop("type")
    config["rope_parameters"] = scaling | {"rope_type": kind, "rope_theta": theta}
    assert model_spec_from_config(config) == model_spec_from_config(real_config())


def test_several_end_tokens():
    assert model_spec_from_config(real_config(eos_token_id=[1, 7])).eos_token_ids == (1, 7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "deepseek_v3"),
        ("hidden_act", "gelu"),
        ("scoring_func", "softmax"),
        ("topk_method", "greedy"),
        ("attention_bias", True),
        ("tie_word_embeddings", True),
        ("moe_layer_freq", 2),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", "61"),
        ("num_hidden_layers", True),
        ("first_k_dense_replace", 62),
        ("n_routed_experts", -1),
        ("n_group", 7),
        ("n_group", 256),
        ("topk_group", 9),
        ("num_experts_per_tok", 129),
        ("qk_rope_head_dim", 63),
        ("index_head_dim", 32),
        ("vocab_size", 2**40),
        ("eos_token_id", 129280),
        ("eos_token_id", None),
        ("eos_token_id", []),
        ("eos_token_id", [True]),
        ("rms_norm_eps", float("nan")),
        ("norm_topk_prob", 1),
        ("rope_scaling", None),
        ("quantization_config", "fp8"),
    ],
)
def test_field_out_of_range_is_named(field, value):
    with pytest.raises(CheckpointError, match=rf"config.json: {field} is .*must be"):
        model_spec_from_config(real_config(**{field: value}))


@pytest.mark.parametrize("field", ["hidden_size", "kv_lora_rank", "index_topk", "rope_theta", "n_group"])
def test_missing_field_is_named(field):
    config = real_config()
    del config[field]
    with pytest.raises(CheckpointError, match=f"{field} is missing"):
        model_spec_from_config(config)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("rope_scaling", "type", "linear"),
        ("rope_scaling", "factor", 0.5),
        ("quantization_config", "quant_method", "awq"),
        ("quantization_config", "fmt", "e5m2"),
        ("quantization_config", "weight_block_size", [64, 128]),
        ("quantization_config", "weight_block_size", 128),
    ],
)
def test_field_of_a_section_is_named_with_the_section(section, field, value):
    config = real_config()
    config[section][field] = value
    with pytest.raises(CheckpointError, match=f"{section}: {field} is .*must be"):
        model_spec_from_config(config)


def test_code_from_the_checkpoint_is_refused():
    with pytest.raises(CheckpointError, match="auto_map"):
        model_spec_from_config(real_config(auto_map={"AutoModel": "modeling.Model"}))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "not found"), ("{", "not valid JSON"), ("[1]", "expected an object"), (b"\xff\xfe", "not valid JSON")],
)
def test_unreadable_config_file_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match=f"config.json: .*{message}"):
        load_model_spec(tmp_path)


def test_config_that_is_a_directory_is_named(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model_spec(tmp_path)


@pytest.mark.parametrize(
    ("rows", "columns", "shape"), [(128, 128, (1, 1)), (576, 7168, (5, 56)), (129, 1, (2, 1)), (1, 256, (1, 2))]
)
def test_scales_of_ragged_matrices(rows, columns, shape):
    assert scale_shape(rows, columns) == shape
