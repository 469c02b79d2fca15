"""Checkpoints of the goldens, made once for all tests of the model."""

import functools

import pytest

from tests.support.models import load_whole, make_golden_checkpoint


@pytest.fixture(scope="session")
def golden_directory(tmp_path_factory):
    """Name of a golden file to the directory of its checkpoint."""
    return functools.cache(lambda name: make_golden_checkpoint(name, tmp_path_factory.mktemp("golden") / name))


@pytest.fixture(scope="session")
def golden_weights(golden_directory):
    """Name of a golden file to its float32 weights on one rank."""
    return functools.cache(lambda name: load_whole(golden_directory(name)))
