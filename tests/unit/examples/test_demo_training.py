"""The demo model's training: its forward pass is the reference's, batches keep documents apart, runs go on exactly."""

import argparse

import numpy as np
import pytest
import torch
from torch.nn import functional

from baleen.model_spec import model_spec_from_config
from examples.demo_model import train
from examples.demo_model.config import CONFIG
from examples.demo_model.data import mixture
from examples.demo_model.model import TrainingModel, initial_parameters, pack
from examples.demo_model.operations import HeadLoss, RmsNorm
from examples.demo_model.optimizer import orthogonalise
from tests.support.reference_model import ReferenceModel
from workers.model.make_checkpoint import CheckpointRecipe

SMALL = CONFIG | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "q_lora_rank": 64,
    "num_attention_heads": 2,
    # with few index heads many scores are exactly 0, and which of them counts is a matter of order
    "index_n_heads": 32,
    "index_topk": 12,
}


def small_model() -> TrainingModel:
    spec = model_spec_from_config(CheckpointRecipe(config=SMALL).full_config())
    parameters = initial_parameters(spec, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in parameters.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
            tensor.requires_grad_(False)
    return TrainingModel(spec, parameters, compute_dtype=torch.float32)


@pytest.mark.parametrize("rows", [7, 256])
@pytest.mark.parametrize("sparse", [False, True])
def test_logits_are_those_of_the_reference(sparse, rows, monkeypatch):
    monkeypatch.setattr("examples.demo_model.model.ATTENTION_ROWS", rows)
    model = small_model()
    model.indexer = model.sparse = sparse
    ids = np.random.RandomState(0).randint(0, 4096, 40).tolist()
    spec = (
        model.spec
        if sparse
        else model_spec_from_config(CheckpointRecipe(config=SMALL | {"index_topk": 64}).full_config())
    )
    expected, _ = ReferenceModel(spec, model.parameters).forward(ids)
    assert (model.logits(ids) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("sparse", [False, True])
def test_documents_of_a_batch_do_not_see_each_other(sparse):
    model = small_model()
    model.indexer = model.mtp = True
    model.sparse = sparse
    random = np.random.RandomState(1)
    documents = [(random.randint(0, 4096, length), np.ones(length, dtype=np.float32)) for length in (9, 30, 5, 31, 32)]
    together = model.losses(pack(documents)).per_token
    alone = [model.losses(pack([document])).per_token for document in sorted(documents, key=lambda d: len(d[0]))]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    assert len(together) == sum(len(ids) - 1 for ids, _ in documents)


def test_the_index_loss_of_a_batch_is_the_mean_over_its_queries(monkeypatch):
    monkeypatch.setattr("examples.demo_model.model.INDEX_SHARE", 1)
    model = small_model()
    model.indexer = True
    random = np.random.RandomState(2)
    documents = [(random.randint(0, 4096, length), np.ones(length, dtype=np.float32)) for length in (30, 31, 20)]
    together = model.losses(pack(documents)).index
    queries = [len(ids) - model.spec.index_topk for ids, _ in documents]
    alone = [model.losses(pack([document])).index * count for document, count in zip(documents, queries, strict=True)]
    assert together == pytest.approx(float(sum(alone)) / sum(queries), rel=1e-4)


def test_rows_too_few_for_their_turn_teach_the_indexer_nothing(monkeypatch):
    monkeypatch.setattr("examples.demo_model.model.ATTENTION_ROWS", 14)
    model = small_model()
    model.indexer, model.index_turn = True, 3
    document = (np.random.RandomState(2).randint(0, 4096, 29), np.ones(29, dtype=np.float32))
    assert torch.isfinite(model.losses(pack([document])).index)


def test_operations_have_the_values_and_gradients_of_autograd():
    generator = torch.Generator().manual_seed(3)
    x, scale = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((300, 12), (12,)))
    head = torch.randn(40, 12, generator=generator).requires_grad_()
    targets, weights = torch.arange(300) % 40, torch.rand(300, generator=generator)
    normed = functional.rms_norm(x, (12,), scale, 1e-6)
    losses = functional.cross_entropy(normed @ head.t(), targets, reduction="none")
    expected = (losses * weights).sum() / weights.sum()
    gradients = torch.autograd.grad(3 * expected, (x, scale, head))
    mean, per_token = HeadLoss.apply(RmsNorm.apply(x, scale, 1e-6, torch.float32), head, targets, weights)
    assert torch.allclose(per_token, losses, atol=1e-5) and torch.allclose(mean, expected, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(3 * mean, (x, scale, head)), gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_orthogonalised_updates_have_equal_singular_values():
    x = torch.randn(2, 24, 60, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.min() > 0.5 and values.max() < 1.4


def options(**changes) -> argparse.Namespace:
    plan = {
        "dense": 0.001,
        "index": 0.001,
        "sparse": 0.002,
        "decay": 0.003,
        "mtp": 0.001,
    }
    rest = {"seed": 0, "batch_tokens": 300, "muon_lr": 0.01, "adam_lr": 0.003, "save_s": 1e9}
    return argparse.Namespace(**plan, **rest, **changes)


@pytest.mark.slow
def test_a_run_passes_all_stages_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CONFIG", SMALL)
    monkeypatch.setattr(train, "mixture", lambda millions: mixture(0.4 if millions < 0.0006 else 99.0))
    whole = train.Training(tmp_path / "whole", options())
    (tmp_path / "whole").mkdir()
    whole.run()
    assert whole.tokens > 3500
    stopped = train.Training(tmp_path / "parts", options())
    (tmp_path / "parts").mkdir()
    stopped.run(max_steps=4)
    again = train.Training(tmp_path / "parts", options())
    assert again.steps == 4
    again.run()
    assert again.steps == whole.steps
    for name, tensor in whole.parameters.items():
        assert torch.equal(tensor, again.parameters[name]), name
