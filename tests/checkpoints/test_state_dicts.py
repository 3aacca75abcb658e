"""State dicts: all of one fits, or nothing of it is loaded and the misfit is named."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given, settings
from torch import nn

from sb3_diffbc.checkpoints import (
    CheckpointError,
    OptimizerRecord,
    load_module_state,
    load_optimizer_state,
    module_state,
    optimizer_to_state,
)
from sb3_diffbc.schema import parse_json

Params = Iterable[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Params], th.optim.Optimizer]] = {
    "Adam": lambda params: th.optim.Adam(params, lr=0.01, betas=(0.8, 0.99), foreach=False),
    "Adam amsgrad": lambda params: th.optim.Adam(params, amsgrad=True),
    "SGD groups": lambda params: th.optim.SGD(
        [{"params": [param], "lr": 0.1 * i} for i, param in enumerate(params)], momentum=0.9
    ),
    "RMSprop": lambda params: th.optim.RMSprop(params, centered=True, momentum=0.5),
    "NAdam": lambda params: th.optim.NAdam(params),
}


def network(width: int = 3) -> nn.Sequential:
    th.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def train(model: nn.Module, optimizer: th.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(th.tensor([[0.1 * step, 1.0], [1.0, 2.0]])).square().sum().backward()
        optimizer.step()


def test_every_misfit_is_named_and_nothing_is_loaded() -> None:
    source, target = network(), network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tensors = module_state(source, "p/")
    del tensors["p/0.bias"]
    tensors["p/other"] = th.zeros(1)
    tensors["p/0.weight"] = th.zeros(7, 2)
    tensors["p/1.weight"] = th.zeros(3, dtype=th.float64)
    with pytest.raises(CheckpointError, match="do not fit this Sequential") as caught:
        load_module_state(target, tensors, "p/")
    for problem in (
        "missing 0.bias",
        "unexpected other",
        "0.weight is float32(7, 2) instead of float32(3, 2)",
        "1.weight is float64(3,) instead of float32(3,)",
    ):
        assert problem in str(caught.value)
    assert all(th.equal(target.state_dict()[n], t) for n, t in before.items())


def test_extra_state_that_is_no_tensor_is_named() -> None:
    class Counting(nn.Module):
        def get_extra_state(self) -> int:
            return 3

    with pytest.raises(TypeError, match="p/_extra_state is a int"):
        module_state(Counting(), "p/")


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(OPTIMIZERS)), before=st.integers(0, 3), prefix=st.text())
def test_training_continues_identically(name: str, before: int, prefix: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, before)
    tensors, record = optimizer_to_state(optimizer, prefix)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    record = parse_json(OptimizerRecord, record.model_dump_json(), "record")

    resumed = copy.deepcopy(model)
    fresh = OPTIMIZERS[name](resumed.parameters())
    load_optimizer_state(fresh, {**tensors, "other": th.zeros(1)}, record, prefix)
    assert repr(fresh.state_dict()["param_groups"]) == repr(optimizer.state_dict()["param_groups"])
    saved = {key: tensor.clone() for key, tensor in tensors.items()}
    train(model, optimizer, 3)
    train(resumed, fresh, 3)
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert th.equal(ours, theirs)
    assert all(th.equal(tensors[key], saved[key]) for key in tensors)  # the optimiser has copies


def test_entries_of_a_schedule_come_back() -> None:
    optimizer = th.optim.SGD(network().parameters(), lr=0.3)
    th.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    fresh = th.optim.SGD(network().parameters())
    load_optimizer_state(fresh, *optimizer_to_state(optimizer))
    assert (fresh.param_groups[0]["lr"], fresh.param_groups[0]["initial_lr"]) == (0.15, 0.3)


WRONG_TYPES = [("lr", True), ("betas", (0.9,)), ("amsgrad", 1.0)]


def trained() -> tuple[th.optim.Optimizer, dict[str, th.Tensor], OptimizerRecord]:
    model = network()
    optimizer = th.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    return optimizer, *optimizer_to_state(optimizer)


@pytest.mark.parametrize(
    "other",
    [
        lambda: th.optim.SGD(network().parameters()),
        lambda: th.optim.Adam(network(width=4).parameters()),
        lambda: th.optim.Adam([{"params": [p]} for p in network().parameters()]),
    ],
)
def test_another_optimiser_is_refused(other: Callable[[], th.optim.Optimizer]) -> None:
    _, tensors, record = trained()
    with pytest.raises(CheckpointError, match=r"expected the state of .* found the state of Adam"):
        load_optimizer_state(other(), tensors, record)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, value, f"{name} is") for name, value in WRONG_TYPES),
        *((name, None, f"{name} is None") for name, _ in WRONG_TYPES),
        ("lr", -1.0, ""),
        ("lr", math.nan, ""),
        ("betas", (0.9, 1.5), ""),
        ("eps", -1e-8, ""),
        ("amsgrad", True, ""),  # whose maxima the state lacks
        ("weight_decay", math.inf, ""),
        ("capturable", True, ""),  # for GPUs
        ("0/exp_avg_sq", th.full((3, 2), -1.0), ""),
        ("0/exp_avg", th.full((3, 2), math.inf), ""),
        ("0/exp_avg", th.zeros(()), ""),
        ("0/exp_avg", th.zeros(3, 2, dtype=th.int64), ""),
        ("0/step", th.tensor(-1.0), ""),
        ("0/step", th.tensor(math.nan), ""),
        ("0/step", th.zeros(3, 2), ""),
        ("0/step", None, ""),  # Adam itself asks for it
    ],
)
def test_what_the_optimiser_cannot_use_is_refused_and_changes_nothing(
    name: str, value: Any, message: str
) -> None:
    optimizer, tensors, record = trained()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = repr(optimizer.state_dict()), [p.clone() for p in parameters]
    if isinstance(value, th.Tensor):
        tensors[name] = value
    elif name == "0/step":
        text = record.model_dump_json().replace('"step",', "", 1)
        record = parse_json(OptimizerRecord, text, "record")
    else:
        record.groups[0].hyperparameters[name] = value
        if value is None:
            del record.groups[0].hyperparameters[name]
    with pytest.raises(CheckpointError, match=f"Adam state.*{message}"):
        load_optimizer_state(optimizer, tensors, record)
    assert repr(optimizer.state_dict()) == before[0]
    assert all(map(th.equal, parameters, before[1]))


@pytest.mark.parametrize("odd", [3, th.zeros(7)])
def test_a_state_that_is_no_fitting_tensor_is_not_saved(odd: Any) -> None:
    model = network()
    optimizer = th.optim.SGD(model.parameters())
    optimizer.state[next(model.parameters())]["odd"] = odd
    with pytest.raises(TypeError, match="SGD state 0/odd is"):
        optimizer_to_state(optimizer)


def test_a_hyperparameter_that_is_no_number_is_not_saved() -> None:
    optimizer = th.optim.Adam(network().parameters(), lr=th.tensor(0.1))
    with pytest.raises(TypeError, match="Adam keeps lr in a tensor"):
        optimizer_to_state(optimizer)
    optimizer.param_groups[0]["lr"] = "fast"
    with pytest.raises(TypeError, match=r"Adam group 0\.hyperparameters\.lr"):
        optimizer_to_state(optimizer)
