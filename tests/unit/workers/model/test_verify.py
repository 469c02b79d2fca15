"""The written table against what is stored: each kind of damage gives its own line, and none hides another."""

import pytest
import torch

from baleen.errors import CheckpointError
from tests.support.tiny_checkpoint import edit_json, edit_tensors, make_tiny
from workers.model.checkpoint import Checkpoint
from workers.model.verify import check_tensors, check_values, require_tensors

NORM = "model.norm.weight"
Q_A = "model.layers.0.self_attn.q_a_proj.weight"
KV_A = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
KV_A_SCALE = KV_A + "_scale_inv"
EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"


def problems_after(directory, change, check=check_tensors, **options):
    edit_tensors(directory, change)
    with Checkpoint.open(directory) as checkpoint:
        return check(checkpoint, **options)


def replace(name, make):
    """A change that puts `make(tensor)` where `name` is stored, and nowhere else."""

    def change(tensors):
        if name in tensors:
            tensors[name] = make(tensors[name]).contiguous()

    return change


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8"])
@pytest.mark.parametrize("num_mtp_layers", [0, 2])
def test_made_checkpoints_fit_the_table(tmp_path, dtype, num_mtp_layers):
    directory = make_tiny(tmp_path, dtype=dtype, num_nextn_predict_layers=num_mtp_layers)
    with Checkpoint.open(directory) as checkpoint:
        assert check_tensors(checkpoint) == []
        assert check_values(checkpoint, progress=False) == []


@pytest.mark.parametrize("name", [NORM, EXPERT, "model.layers.0.self_attn.indexer.k_norm.bias"])
def test_missing_tensor(tmp_path, name):
    found = problems_after(make_tiny(tmp_path), lambda tensors: tensors.pop(name, None))
    assert len(found) == 1
    assert found[0].startswith(f"{name}: missing, expected [")


def test_extra_tensor(tmp_path):
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    found = problems_after(make_tiny(tmp_path, num_shards=1), lambda tensors: tensors.update({extra: torch.ones(32)}))
    assert len(found) == 1
    assert found[0].startswith(f"{extra}: not a tensor of this model, found [32] F32 in model-00001")


def test_wrong_shape(tmp_path):
    found = problems_after(make_tiny(tmp_path), replace(EXPERT, lambda tensor: tensor[:, 1:]))
    assert len(found) == 1
    assert found[0].startswith(f"{EXPERT}: shape [32, 63], expected [32, 64] (in model-0000")


def test_wrong_dtype(tmp_path):
    found = problems_after(make_tiny(tmp_path), replace(NORM, lambda tensor: tensor.half()))
    assert len(found) == 1
    assert found[0].startswith(f"{NORM}: dtype F16, expected BF16 or F32 (in model-0000")


def test_norms_may_be_bfloat16(tmp_path):
    assert problems_after(make_tiny(tmp_path), replace(NORM, lambda tensor: tensor.bfloat16())) == []


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.gate.weight", "model.embed_tokens.weight"])
def test_float8_where_it_is_not_allowed(tmp_path, name):
    found = problems_after(make_tiny(tmp_path, dtype="float8"), replace(name, lambda x: x.to(torch.float8_e4m3fn)))
    assert len(found) == 1
    assert found[0].startswith(f"{name}: dtype F8_E4M3, expected BF16 or F32")


def test_float8_without_a_quantization_config(tmp_path):
    directory = make_tiny(tmp_path, dtype="float8")
    edit_json(directory / "config.json", lambda config: config.pop("quantization_config"))
    with Checkpoint.open(directory) as checkpoint:
        found = check_tensors(checkpoint)
    assert any(problem.startswith(f"{Q_A}: dtype F8_E4M3") and "quantization_config" in problem for problem in found)


def test_float8_without_a_scale(tmp_path):
    found = problems_after(make_tiny(tmp_path, dtype="float8"), lambda tensors: tensors.pop(KV_A_SCALE, None))
    assert found == [f"{KV_A}: F8_E4M3 without its scale, expected {KV_A_SCALE} [2, 1] F32"]


def test_scale_without_float8(tmp_path):
    found = problems_after(make_tiny(tmp_path, dtype="float8"), replace(KV_A, lambda tensor: tensor.bfloat16()))
    assert len(found) == 1
    assert found[0].startswith(f"{KV_A_SCALE}: scale without a F8_E4M3 weight, {KV_A} is BF16 (in ")


def test_scale_whose_weight_is_missing(tmp_path):
    found = problems_after(make_tiny(tmp_path, dtype="float8"), lambda tensors: tensors.pop(KV_A, None))
    assert [problem.split(":")[0] for problem in found] == [KV_A, KV_A_SCALE]
    assert "missing" in found[0]
    assert "is missing" in found[1]


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 2), (2,)])
def test_ragged_scale_of_the_wrong_shape(tmp_path, shape):
    # 192 rows make two rows of blocks, the second one half filled.
    found = problems_after(make_tiny(tmp_path, dtype="float8"), replace(KV_A_SCALE, lambda _: torch.ones(shape)))
    assert len(found) == 1
    assert found[0].startswith(f"{KV_A_SCALE}: shape {list(shape)}, expected [2, 1] (in ")


def test_scale_of_the_wrong_dtype(tmp_path):
    found = problems_after(make_tiny(tmp_path, dtype="float8"), replace(KV_A_SCALE, lambda x: x.bfloat16()))
    assert len(found) == 1
    assert found[0].startswith(f"{KV_A_SCALE}: dtype BF16, expected F32")


def test_prediction_layers_may_be_absent_but_not_misshapen(tmp_path):
    directory = make_tiny(tmp_path, num_nextn_predict_layers=1)
    assert problems_after(directory, lambda tensors: tensors.pop("model.layers.2.hnorm.weight", None)) == []
    found = problems_after(directory, replace("model.layers.2.eh_proj.weight", lambda tensor: tensor[:, :64]))
    assert len(found) == 1
    assert "shape [64, 64], expected [64, 128]" in found[0]


def test_layer_beyond_the_config_is_extra(tmp_path):
    directory = make_tiny(tmp_path, num_nextn_predict_layers=1)
    edit_json(directory / "config.json", lambda config: config.update(num_nextn_predict_layers=0))
    with Checkpoint.open(directory) as checkpoint:
        found = check_tensors(checkpoint)
    assert found
    assert all(problem.startswith("model.layers.2.") and "not a tensor of this model" in problem for problem in found)


def test_all_problems_come_in_one_error(tmp_path):
    directory = make_tiny(tmp_path)
    edit_tensors(directory, lambda tensors: [tensors.pop(name, None) for name in (NORM, EXPERT)])
    edit_tensors(directory, replace(Q_A, lambda tensor: tensor[1:]))
    with Checkpoint.open(directory) as checkpoint, pytest.raises(CheckpointError) as caught:
        require_tensors(checkpoint)
    message = str(caught.value)
    assert "3 problems" in message
    assert all(name in message for name in (NORM, EXPERT, Q_A))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_that_are_not_finite(tmp_path, bad, dtype):
    def spoil(tensors):
        if EXPERT in tensors:
            tensors[EXPERT].view(-1)[[0, 77]] = bad

    found = problems_after(make_tiny(tmp_path, dtype=dtype), spoil, check_values, progress=False)
    assert len(found) == 1
    assert found[0].startswith(f"{EXPERT}: 2 of 2048 numbers are NaN or infinite")


def test_float8_nan(tmp_path):
    def spoil(tensors):
        if EXPERT in tensors:
            tensors[EXPERT].view(torch.uint8).view(-1)[5] = 0xFF

    found = problems_after(make_tiny(tmp_path, dtype="float8"), spoil, check_values, progress=False)
    assert len(found) == 1
    assert found[0].startswith(f"{EXPERT}: 1 of 2048 numbers are NaN")


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_scales_that_are_not_positive(tmp_path, bad):
    directory = make_tiny(tmp_path, dtype="float8")
    found = problems_after(directory, replace(KV_A_SCALE, lambda x: x * bad), check_values, progress=False)
    assert len(found) == 1
    assert found[0].startswith(f"{KV_A_SCALE}: 2 of 2 scales are not above 0")
