"""Optimiser states: training continues as if it had never stopped."""

import copy
import json
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from sb3_diffbc.checkpoints import CheckpointError, load_optimizer_state, optimizer_to_state

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01, betas=(0.8, 0.99)),
    "Adam amsgrad": lambda params: torch.optim.Adam(params, amsgrad=True),
    "Adam tensor lr": lambda params: torch.optim.Adam(params, lr=torch.tensor(0.01)),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.02, weight_decay=0.1),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "SGD momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda params: torch.optim.RMSprop(params, centered=True, momentum=0.5),
    "Adagrad": lambda params: torch.optim.Adagrad(params),
    "NAdam": lambda params: torch.optim.NAdam(params),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.tensor([[0.1 * step, 1.0]])).square().sum().backward()
        optimizer.step()


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(OPTIMIZERS)), before=st.integers(0, 3), prefix=st.text())
def test_training_continues_identically(name: str, before: int, prefix: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, before)
    tensors, content = optimizer_to_state(optimizer, prefix)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    content = json.loads(json.dumps(content, allow_nan=False))

    resumed = copy.deepcopy(model)
    fresh = OPTIMIZERS[name](resumed.parameters())
    load_optimizer_state(fresh, {**tensors, "other": torch.zeros(1)}, content, prefix)
    train(model, optimizer, 3)
    train(resumed, fresh, 3)
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_hyperparameters_come_back_with_their_types() -> None:
    optimizer = torch.optim.Adam(network().parameters(), lr=0.3, betas=(0.1, 0.2), foreach=False)
    fresh = torch.optim.Adam(network().parameters())
    load_optimizer_state(fresh, *optimizer_to_state(optimizer))
    expected = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    found = {k: v for k, v in fresh.param_groups[0].items() if k != "params"}
    assert repr(found) == repr(expected)


def test_groups_with_their_own_rates_come_back() -> None:
    def build(rate: float) -> torch.optim.Optimizer:
        model = network()
        groups = [{"params": model[0].parameters(), "lr": rate}, {"params": model[2].parameters()}]
        return torch.optim.SGD(groups, lr=0.5)

    fresh = build(0.9)
    load_optimizer_state(fresh, *optimizer_to_state(build(0.1)))
    assert [group["lr"] for group in fresh.param_groups] == [0.1, 0.5]


def test_loading_does_not_tie_the_optimiser_to_the_tensors() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    tensors, content = optimizer_to_state(optimizer)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    load_optimizer_state(optimizer, tensors, content)
    train(model, optimizer, 2)
    assert all(torch.equal(tensors[key], before[key]) for key in tensors)


def trained() -> tuple[torch.optim.Optimizer, dict[str, torch.Tensor], dict[str, Any]]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    tensors, content = optimizer_to_state(optimizer)
    return optimizer, tensors, content


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (
            lambda: torch.optim.SGD(network().parameters()),
            "expected the state of SGD, found .*Adam",
        ),
        (lambda: torch.optim.Adam(network()[0].parameters()), "for 4 parameters instead of 2"),
        (
            lambda: torch.optim.Adam([*network()[2].parameters(), *network()[0].parameters()]),
            r"parameter 0 has the shape list \[3, 2\] instead of \[1, 3\]",
        ),
        (
            lambda: torch.optim.Adam([{"params": [p]} for p in network().parameters()]),
            "parameter groups are",
        ),
    ],
)
def test_another_optimiser_is_refused(
    other: Callable[[], torch.optim.Optimizer], problem: str
) -> None:
    _, tensors, content = trained()
    with pytest.raises(CheckpointError, match=problem):
        load_optimizer_state(other(), tensors, content)


def damage(content: dict[str, Any], *path_and_value: Any) -> dict[str, Any]:
    content = copy.deepcopy(content)
    *path, last, value = path_and_value
    inner = content
    for key in path:
        inner = inner[key]
    inner[last] = value
    return content


@pytest.mark.parametrize(
    "change",
    [
        ("param_shapes", {}),
        ("param_groups", {}),
        ("param_groups", []),
        ("param_groups", 0, []),
        ("param_groups", 0, "params", [0, 1, 2]),
        ("param_groups", 0, "params", {"tensor": "state/0/step"}),
        ("param_groups", 0, "lr", {"class": "Adam"}),
        ("state", []),
        ("state", "0", []),
        ("state", "4", {}),
        ("state", "zero", {}),
        ("state", "0", "exp_avg", {"tensor": "state/9/exp_avg"}),
        ("state", "0", "exp_avg", {"tensor": ["state/0/exp_avg"]}),
        ("state", "0", "exp_avg", {"tensor": "state/1/exp_avg"}),
        ("state", "0", "step", "three"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(change: tuple[Any, ...]) -> None:
    optimizer, tensors, content = trained()
    before = repr(optimizer.state_dict())
    with pytest.raises(CheckpointError, match="Adam state"):
        load_optimizer_state(optimizer, tensors, damage(content, *change))
    assert repr(optimizer.state_dict()) == before


def test_content_that_is_not_an_object_is_refused() -> None:
    optimizer, tensors, _ = trained()
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        load_optimizer_state(optimizer, tensors, None)


def test_a_state_that_is_no_tensor_and_no_value_is_named() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state[next(iter(model.parameters()))]["odd"] = {1, 2}
    with pytest.raises(TypeError, match="SGD state/0/odd is a set"):
        optimizer_to_state(optimizer)
