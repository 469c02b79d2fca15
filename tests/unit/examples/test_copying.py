"""The demo model copies before it has learnt anything, and its sizes decide whether it can."""

import pytest
import torch

from baleen.model_spec import model_spec_from_config
from examples.demo_model.config import CONFIG
from examples.demo_model.copying import begin_with_copying_heads, fits
from examples.demo_model.model import TrainingModel, initial_parameters
from workers.model.make_checkpoint import CheckpointRecipe

SPEC = model_spec_from_config(CheckpointRecipe(config=CONFIG).full_config())


def share_copied(*, begun: bool) -> float:
    """How many tokens of a second half that repeats the first are the likeliest ones."""
    parameters = initial_parameters(SPEC, 0)
    for tensor in parameters.values():
        tensor.requires_grad_(False)
    if begun:
        begin_with_copying_heads(SPEC, parameters, 0)
    half = torch.randint(100, 4000, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    guesses = TrainingModel(SPEC, parameters).logits(half + half).argmax(-1)
    # the first three have too little before them to be found
    return float((guesses[63:-1] == torch.tensor(half[4:])).float().mean())


def test_an_untrained_model_goes_on_as_it_did_before():
    assert share_copied(begun=True) > 0.95
    assert share_copied(begun=False) < 0.1


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 128, "q_lora_rank": 128}, {"q_lora_rank": 128}, {"num_attention_heads": 2}, {"v_head_dim": 64}],
)
def test_sizes_without_room_are_told(changes):
    assert fits(SPEC)
    assert not fits(model_spec_from_config(CheckpointRecipe(config=CONFIG | changes).full_config()))
