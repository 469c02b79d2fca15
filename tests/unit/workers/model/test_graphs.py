"""Graphs of decode steps, with a stand-in for CUDA's: what is captured, in which order, and what a replay is given."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from workers.model.device_batch import build_host_batch
from workers.model.forward import Piece
from workers.model.graphs import Buckets, DecodeGraphs
from workers.parallel.lockstep import DecodeSize
from workers.staging import Staging

CPU = torch.device("cpu")
TABLE = np.array([[5, 7, 2], [9, 4, 0]], dtype=np.int64)


class Stream:
    """A stream in which everything has happened at once."""

    def __init__(self, device):
        pass

    def wait_stream(self, other):
        pass


class Graph:
    """Does again, over the same memory, what `Model` did while it was captured."""

    capturing = None

    def __init__(self):
        self.calls = []

    def replay(self):
        for call in self.calls:
            call()


@contextmanager
def capture(graph, *, pool, capture_error_mode):
    Graph.capturing = graph
    yield
    Graph.capturing = None


class Model:
    """Its logits are each row's token and number of keys; sizes: what it was asked for, in order."""

    def __init__(self):
        self.sizes = []

    def forward(self, step):
        self.sizes.append(DecodeSize(step.num_tokens, step.most_context))
        logits_N2 = self.compute(step)
        if Graph.capturing is not None:
            Graph.capturing.calls.append(lambda: logits_N2.copy_(self.compute(step)))
        return logits_N2

    def compute(self, step):
        return torch.stack((step.token_ids_T.float(), step.lengths_T.float()), dim=1)


@pytest.fixture
def graphs(monkeypatch):
    for name, stand_in in {
        "graph_pool_handle": lambda: None, "Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph,
        "stream": lambda stream: nullcontext(), "graph": capture,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    model = Model()
    made = DecodeGraphs(model.forward, Staging(CPU), CPU)
    made.capture(Buckets(rows=(1, 2, 4), contexts=(64, 192)))
    return made, model


def step_of(tokens, fill_to):
    pieces = [Piece([token], 10 * place, place, samples=True) for place, token in enumerate(tokens)]
    return build_host_batch(pieces, TABLE, fill_to=fill_to)


def test_all_buckets_are_captured_the_largest_first_each_after_a_run(graphs):
    made, model = graphs
    sizes = [DecodeSize(rows, context) for context in (192, 64) for rows in (4, 2, 1)]
    assert model.sizes == [size for size in sizes for _ in range(2)]
    assert len(made) == 6
    made.clear()
    assert len(made) == 0


def test_a_replay_computes_the_step_that_it_is_given(graphs):
    made, model = graphs
    asked = len(model.sizes)
    for tokens, size in (([31, 32], DecodeSize(4, 64)), ([33], DecodeSize(1, 64)), ([34, 35], DecodeSize(4, 64))):
        logits = made.run(step_of(tokens, size))
        rows = [[float(token), 10.0 * place + 1] for place, token in enumerate(tokens)]
        assert logits.tolist() == rows + [[0.0, 0.0]] * (size.rows - len(tokens))
    assert len(model.sizes) == asked, "a replay asks the model for nothing"
    with pytest.raises(AssertionError, match="only a step of a bucket's size"):
        made.run(step_of([31], None))
