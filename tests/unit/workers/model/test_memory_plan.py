"""A rank that cannot fit is refused with the sum, and with what would fit."""

import dataclasses

import pytest

from baleen.config import EngineConfig
from baleen.errors import ConfigError
from baleen.model_spec import load_model_spec, model_spec_from_config
from tests.support.models import golden_recipe
from workers.cache.device_tensors import DeviceCache, device_block_bytes
from workers.model.memory_plan import GIB, MemoryPlan, exchange_bytes, workspace_bytes

PLAN = MemoryPlan(weights=99 * GIB, cache=40 * GIB, workspace=2 * GIB, free=141 * GIB, block=4 * GIB)


def test_what_fits_to_the_byte_is_taken():
    PLAN.require_fit()
    with pytest.raises(ConfigError, match=r"weights 99.00 \+ cache 40.00 \+ workspace 2.00 = 141.00 GiB of 140.00 GiB"):
        dataclasses.replace(PLAN, free=140 * GIB).require_fit()


def test_the_refusal_says_what_would_fit():
    with pytest.raises(ConfigError, match=r"cache.num_blocks could be 9 at most"):
        dataclasses.replace(PLAN, free=140 * GIB).require_fit()
    with pytest.raises(ConfigError, match="not even without a cache"):
        dataclasses.replace(PLAN, free=100 * GIB).require_fit()


def test_workspace_grows_with_what_a_step_holds():
    from pathlib import Path

    spec = load_model_spec(Path("tests/data/deepseek_v32_config.json"))
    small = workspace_bytes(spec, EngineConfig(max_batch_tokens=256, max_running=8), logit_bytes=0)
    large = workspace_bytes(spec, EngineConfig(max_batch_tokens=8192, max_running=8), logit_bytes=0)
    # the widest tensors of a token alone: queries of 128 heads in latent space, and the answers of its experts
    assert large - small > (8192 - 256) * (128 * 576 * 2 + 8 * 7168 * 2)
    assert 1 * GIB < small < 4 * GIB
    # keys and values of 128 heads, which other widths never have
    other = workspace_bytes(dataclasses.replace(spec, v_head_dim=64), EngineConfig(max_running=8), logit_bytes=0)
    assert workspace_bytes(spec, EngineConfig(max_running=8), logit_bytes=0) - other > 4096 * 128 * 256 * 2


def test_records_of_all_ranks_are_counted():
    from pathlib import Path

    spec = load_model_spec(Path("tests/data/deepseek_v32_config.json"))
    engine = EngineConfig(max_running=128)
    assert exchange_bytes(spec, engine, world_size=1) == 0
    # of each record: twice a row and its answer, and for each of 8 experts an inner row of 2048 and an answer of 7168
    least = 8 * 128 * (4 * 2 * 7168 + 8 * 2 * (2048 + 7168))
    assert least < exchange_bytes(spec, engine, world_size=8) < 1.05 * least
    assert exchange_bytes(spec, engine, world_size=32) == 4 * exchange_bytes(spec, engine, world_size=8)


@pytest.mark.parametrize("dtype", ["float8", "bfloat16"])
def test_bytes_of_a_block_are_those_of_the_cache(dtype):
    import torch

    spec = model_spec_from_config(golden_recipe("dev_fp8.golden").full_config())
    cache = DeviceCache(spec, 3, dtype, torch.device("cpu"))
    assert cache.num_bytes == 3 * device_block_bytes(spec, dtype)
    with pytest.raises(ConfigError, match=r"cache.dtype is 'float32', must be float8 or bfloat16"):
        device_block_bytes(spec, "float32")
