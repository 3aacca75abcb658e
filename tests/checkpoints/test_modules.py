"""Module weights: all fit, or none are loaded and the misfits are named."""

import pytest
import torch
from torch import nn

from sb3_diffbc.checkpoints import CheckpointError, load_module_state, module_state


def network(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def test_weights_and_buffers_come_back_under_a_prefix() -> None:
    source, target = network(), network()
    source(torch.rand(5, 2))  # moves the running statistics
    tensors = module_state(source, "policy/")
    assert "policy/1.running_mean" in tensors
    load_module_state(target, {**tensors, "critic/0.weight": torch.zeros(9)}, "policy/")
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_every_misfit_is_named_and_nothing_is_loaded() -> None:
    source, target = network(), network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tensors = module_state(source, "p/")
    del tensors["p/0.bias"]
    tensors["p/other"] = torch.zeros(1)
    tensors["p/0.weight"] = torch.zeros(7, 2)
    tensors["p/1.weight"] = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(CheckpointError, match="do not fit this Sequential") as caught:
        load_module_state(target, tensors, "p/")
    for problem in (
        "missing 0.bias",
        "unexpected other",
        "0.weight is float32(7, 2) instead of float32(3, 2)",
        "1.weight is float64(3,) instead of float32(3,)",
    ):
        assert problem in str(caught.value)
    assert all(torch.equal(target.state_dict()[n], t) for n, t in before.items())


def test_a_long_list_of_misfits_is_cut() -> None:
    with pytest.raises(CheckpointError, match=r"; \.\.\.$"):
        load_module_state(nn.Sequential(*(nn.Linear(1, 1) for _ in range(9))), {}, "p/")


def test_extra_state_that_is_no_tensor_is_named() -> None:
    class Counting(nn.Module):
        def get_extra_state(self) -> int:
            return 3

    with pytest.raises(TypeError, match="p/_extra_state is a int"):
        module_state(Counting(), "p/")
