"""What the diagnosis measures, against what is known beforehand."""

import dataclasses
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from imitation.data import types

from benchmarks import diagnosis
from sb3_diffbc import DiffusionBC, load_demonstrations
from sb3_diffbc.tasks import find_task

CRITIC = {"n_steps": 25, "width": 8, "depth": 1}


def pairs(n: int) -> types.Transitions:
    return load_demonstrations("maze")[:n]


def trainer(n: int = 64, **arguments: object) -> DiffusionBC:
    made = DiffusionBC(
        demonstrations=pairs(n),
        env="sb3_diffbc/Maze-v0",
        seed=0,
        verbose=0,
        device="cpu",
        critic_kwargs=CRITIC,
        **arguments,
    )
    made.train(n_batches=2, progress_bar=False)
    return made


def test_the_held_out_pairs_come_last_and_none_is_lost() -> None:
    everything = pairs(50)
    train, held_out = diagnosis.split(everything)
    assert (len(train), len(held_out)) == (45, 5)
    assert np.array_equal(np.concatenate([train.obs, held_out.obs]), everything.obs)


def test_the_cloning_error_of_the_mean_action_is_that_of_one_variance() -> None:
    transitions, learner = pairs(64), trainer()
    with th.no_grad():  # then the network says the demonstrations' mean, whatever it sees
        learner.policy.action_net[0].weight.zero_()
        learner.policy.action_net[0].bias.zero_()
    expected = np.var(transitions.acts, axis=0) / np.var(transitions.acts, axis=0, ddof=1)
    assert diagnosis.cloning_error(learner, transitions) == pytest.approx(expected.mean(), rel=1e-4)


def test_an_agent_that_does_what_the_expert_does_is_never_worse() -> None:
    learner = trainer()
    transitions = pairs(64)
    obs = th.as_tensor(transitions.obs, dtype=th.float32)
    with th.no_grad():
        own = learner.policy.get_distribution(obs).mode().numpy()
    found = diagnosis.guidance(learner, dataclasses.replace(transitions, acts=own))
    assert found["agent"] == pytest.approx(found["expert"], rel=1e-3)
    far = dataclasses.replace(transitions, acts=np.full_like(own, 0.0))
    with th.no_grad():
        learner.policy.action_net[0].bias.fill_(40)
    assert diagnosis.guidance(learner, far)["agent"] != pytest.approx(
        diagnosis.guidance(learner, far)["expert"], rel=1e-3
    )


def test_the_gradients_ratio_grows_with_the_coefficient() -> None:
    learner = trainer(dm_clamp="none", bc_loss="mse")
    ratios = []
    for dm_coef in (1.0, 10.0):
        learner.dm_coef = dm_coef
        learner._noise = None
        th.manual_seed(0)
        learner.loss_calculator = learner._make_loss()
        ratios.append(diagnosis.gradient_balance(learner, pairs(64)))
    assert ratios[1]["norm_ratio"] == pytest.approx(10 * ratios[0]["norm_ratio"], rel=1e-3)
    assert ratios[1]["cosine"] == pytest.approx(ratios[0]["cosine"], abs=1e-3)
    assert -1 <= ratios[0]["cosine"] <= 1


def test_every_variant_is_one_that_the_trainer_takes() -> None:
    env = gym.make("sb3_diffbc/Maze-v0")
    for arguments in diagnosis.VARIANTS.values():
        DiffusionBC(env=env, verbose=0, **arguments)


def test_a_cell_says_what_it_found_and_the_table_shows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(diagnosis, "_DRAWS", 2)
    records = [
        diagnosis.diagnose(find_task("maze"), pairs(200), name, 0, n_updates=20, n_episodes=2)
        for name in ("mse, BC", "nll, p(a|s), 1 (default)")
    ]
    assert "guidance" not in records[0]
    assert len(records[1]["cloning_error"]["updates"]) == 10
    assert records[1]["pairs"] == {"train": 180, "held_out": 20}
    table = diagnosis.summarise(records)
    assert "## Maze" in table
    rows = [line for line in table.splitlines() if line.startswith("| mse") or "default" in line]
    assert len(rows) == 2
    assert all(len(row.replace(r"\|", "").split("|")) == 11 for row in rows)
    assert rows[1].endswith("– | – | – | – |") or rows[0].endswith("– | – | – | – |")


def test_results_of_different_variants_have_files_of_their_own() -> None:
    names = [diagnosis.slug(variant) for variant in diagnosis.VARIANTS]
    assert len(set(names)) == len(names)
