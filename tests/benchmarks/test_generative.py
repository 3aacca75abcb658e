"""Other models in the critic's place: what they tell apart, and what learns when."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch as th

pytest.importorskip("pandas")

from comparing import ORIGIN, line_suite, resized
from toys import CONTINUOUS, VECTOR, transitions, weights

from benchmarks.cell import run_cell
from benchmarks.methods.base import Setup
from benchmarks.methods.generative import (
    AdversarialModel,
    AutoencoderModel,
    EnergyModel,
    GenerativeMethod,
    PairModel,
)
from benchmarks.suites.generative import SUITE

MODELS = (EnergyModel, AutoencoderModel, AdversarialModel)
every_model = pytest.mark.parametrize("model", MODELS)
DATA = transitions(n=256)
OBS, ACTS = th.as_tensor(DATA.obs.copy()), th.as_tensor(DATA.acts.copy())
OTHERS = ACTS.flip(0)
"""The expert's actions, but at other observations."""


def setup(seed: int = 0) -> Setup:
    return Setup(DATA, VECTOR, CONTINUOUS, seed=seed)


def called(model: PairModel, agent_acts: th.Tensor) -> Any:
    return model(OBS, agent_acts, ACTS, model.draw_noise(len(OBS)))


@pytest.mark.parametrize(("model", "n_steps"), zip(MODELS, (50, 200, 0), strict=True))
def test_a_model_tells_expert_pairs_from_others(model: type[PairModel], n_steps: int) -> None:
    fitted = model(setup())
    fitted.fit(DATA, n_steps)
    for _ in range(40 if model is AdversarialModel else 1):  # which learns when it is called
        found = called(fitted, OTHERS)
    assert (found.agent > found.expert).float().mean() > 0.75
    assert found.loss > called(fitted, ACTS).loss


@every_model
def test_the_gradient_reaches_the_policys_action_alone(model: type[PairModel]) -> None:
    fitted = model(setup())
    fitted.fit(DATA, 10)
    agent_acts, expert_acts = (OTHERS + 0.1).requires_grad_(), ACTS.clone().requires_grad_()
    found = fitted(OBS, agent_acts, expert_acts, fitted.draw_noise(len(OBS)))
    found.loss.backward()
    assert agent_acts.grad is not None
    assert bool((agent_acts.grad != 0).any(dim=1).all())
    assert expert_acts.grad is None
    assert not any(parameter.requires_grad for parameter in fitted.network.parameters())


@every_model
def test_only_the_discriminator_learns_beside_the_policy(model: type[PairModel]) -> None:
    method = GenerativeMethod(setup(), model=model, n_updates=5, bc_coef=0.0)
    seen: list[th.Tensor] = []
    before = weights(method.trainer.model.network)
    method.train(lambda: seen.append(weights(method.trainer.model.network)))
    moves = [not th.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert moves == [model is AdversarialModel] * 4
    assert not th.equal(seen[0], before), "fitted, or one step further"


def test_the_energies_difference_counts_in_both_directions() -> None:
    model = EnergyModel(setup())
    model.fit(DATA, 10)
    found = called(model, OTHERS)
    expected = (found.agent - found.expert).abs().mean()
    assert found.loss.item() == pytest.approx(expected.item())
    assert found.loss > (found.agent - found.expert).mean()


def test_cells_of_the_suite_run_and_say_which_model_they_had(tmp_path: Path) -> None:
    variants = [resized(v, n_updates=20) for v in SUITE.variants if "alone" in v.name]
    cells, notes = line_suite(tmp_path, *variants).cells(ORIGIN)
    assert not notes
    models = [cell.config["critic"].get("model") for cell in cells]
    assert models == ["EnergyModel", "AutoencoderModel", "AdversarialModel", None]
    record = run_cell(cells[0])
    assert record.measures["cpu_seconds/critic"] > 0
    assert record.config["bc_coef"] == 0
