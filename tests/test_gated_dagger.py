"""DAgger that asks the expert only where a gate says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from imitation.algorithms import bc
from imitation.data import rollout, types
from imitation.policies.base import NonTrainablePolicy
from imitation.util import logger as imit_logger
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import CRITIC_KWARGS, LineEnv, weights

from sb3_diffbc import CriticGate, DiffusionBC, GatedDAggerTrainer, hold_out
from sb3_diffbc.gates import Gate, ask_always

SPACES: dict[str, Any] = {
    "observation_space": LineEnv.observation_space,
    "action_space": LineEnv.action_space,
}
BC_KWARGS: dict[str, Any] = {"n_batches": 3, "progress_bar": False, "log_rollouts_venv": None}


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    datasets.disable_progress_bars()


class CountingExpert(NonTrainablePolicy):
    """Goes right; remembers what it was asked about."""

    LABEL = 0.875

    def __init__(self) -> None:
        super().__init__(**SPACES)
        self.asked: list[np.ndarray] = []

    def _choose_action(self, obs: Any) -> np.ndarray:
        self.asked.append(np.array(obs))
        return np.array([self.LABEL], np.float32)


class RecordingLine(LineEnv):
    """Remembers the actions that were executed."""

    def __init__(self) -> None:
        super().__init__()
        self.executed: list[float] = []

    def step(self, action: np.ndarray) -> Any:
        self.executed.append(float(np.asarray(action).item()))
        return super().step(action)


def demonstrations(n: int = 6) -> list[types.Trajectory]:
    """Trajectories of five steps, with other actions than the expert's."""
    rng = np.random.default_rng(0)
    return [
        types.Trajectory(
            rng.normal(size=(6, 2)).astype(np.float32),
            rng.uniform(0.1, 0.5, size=(5, 1)).astype(np.float32),
            None,
            terminal=True,
        )
        for _ in range(n)
    ]


def diffusion_bc(**kwargs: Any) -> DiffusionBC:
    return DiffusionBC(
        bc_loss="nll",
        **SPACES,
        **{"dm_coef": 0.0, "batch_size": 8, "seed": 0, "verbose": 0, "device": "cpu", **kwargs},
    )


def imitation_bc() -> bc.BC:
    return bc.BC(
        **SPACES, rng=np.random.default_rng(0), batch_size=8, device="cpu", custom_logger=quiet()
    )


def quiet() -> imit_logger.HierarchicalLogger:
    return imit_logger.configure(format_strs=[])


def make(
    folder: Path, gate: Gate, *, n_envs: int = 1, learner: bc.BC | None = None, **kwargs: Any
) -> GatedDAggerTrainer:
    venv = DummyVecEnv([RecordingLine] * n_envs)
    venv.seed(0)
    return GatedDAggerTrainer(
        **{
            "venv": venv,
            "scratch_dir": folder / "scratch",
            "expert_policy": CountingExpert(),
            "rng": np.random.default_rng(0),
            "expert_trajs": demonstrations(),
            "bc_trainer": diffusion_bc() if learner is None else learner,
            "gate": gate,
            "custom_logger": quiet(),
            **kwargs,
        }
    )


def train(trainer: GatedDAggerTrainer, steps: int = 20, **kwargs: Any) -> None:
    trainer.train(
        steps,
        rollout_round_min_timesteps=steps,
        rollout_round_min_episodes=1,
        bc_train_kwargs=BC_KWARGS,
        **kwargs,
    )


def on_the_right(obs: np.ndarray, acts: np.ndarray) -> np.ndarray:
    return obs[:, 0] > 0


@pytest.mark.parametrize("learner", [imitation_bc, diffusion_bc])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_expert_is_asked_only_there_and_only_that_is_learned_from(
    learner: Callable[[], bc.BC], n_envs: int, tmp_path: Path
) -> None:
    seen: list[np.ndarray] = []

    def gate(obs: np.ndarray, acts: np.ndarray) -> np.ndarray:
        seen.append(obs)
        return on_the_right(obs, acts)

    trainer = make(tmp_path, gate, n_envs=n_envs, learner=learner())
    train(trainer)
    asked = np.array(trainer.expert_policy.asked)
    on_right = np.concatenate(seen)[np.concatenate(seen)[:, 0] > 0]
    assert 0 < len(asked) < sum(map(len, seen)) == trainer.num_timesteps
    assert {*map(tuple, asked)} == {*map(tuple, on_right)}
    assert trainer.n_expert_labels == len(asked)
    learned = trainer.demonstrations
    is_label = learned.acts[:, 0] == CountingExpert.LABEL
    # The demonstrations, and each label that was paid for: also in episodes that were not over.
    assert sorted(map(tuple, learned.obs[is_label])) == sorted(map(tuple, asked))
    assert is_label.sum() + 30 == len(learned)
    assert trainer.round_num == 2


def test_what_is_learned_from_is_what_the_trainer_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    original = DiffusionBC.set_demonstrations
    monkeypatch.setattr(
        DiffusionBC,
        "set_demonstrations",
        lambda self, data: (given.append(data), original(self, data)),
    )
    trainer = make(tmp_path, on_the_right)
    train(trainer)
    loaders = [data for data in given if data is not None]
    assert [len(loader.dataset) for loader in loaders] == [30, 30 + trainer.n_expert_labels]
    np.testing.assert_array_equal(loaders[-1].dataset.acts, trainer.demonstrations.acts)


def test_transitions_stay_whole_and_the_last_label_of_an_episode_ends_it(tmp_path: Path) -> None:
    trainer = make(tmp_path, on_the_right)
    train(trainer)
    labels = trainer.demonstrations[30:]
    moves = labels.next_obs[:, 1] - labels.obs[:, 1]
    assert (moves == -1).all(), "what follows a label is the environment's next observation"
    # Where the next label is not one step later, another episode or a gap lies between.
    follows = np.append((labels.obs[1:] == labels.next_obs[:-1]).all(axis=1), False)
    assert not (labels.dones & follows).any()
    assert labels.dones[-1]
    assert trainer.demonstrations.dones[:30].sum() == 6


@pytest.mark.parametrize("takeover", [False, True])
def test_the_expert_acts_only_where_it_takes_over(takeover: bool, tmp_path: Path) -> None:
    trainer = make(tmp_path, ask_always, takeover=takeover)
    train(trainer)
    executed = np.array(trainer.venv.envs[0].executed)
    assert (executed == CountingExpert.LABEL).all() == takeover
    assert (executed == CountingExpert.LABEL).any() == takeover
    assert trainer.n_expert_labels == len(executed) == trainer.num_timesteps


def test_no_more_labels_are_asked_for_than_the_budget_has(tmp_path: Path) -> None:
    trainer = make(tmp_path, ask_always, n_envs=4, max_labels=10)
    train(trainer, 1_000)
    assert trainer.n_expert_labels == len(trainer.expert_policy.asked) == 10
    assert trainer.num_timesteps < 100, "training ends with the budget"
    rounds = trainer.round_num
    train(trainer)
    assert trainer.round_num == rounds
    trainer.max_labels = 13
    train(trainer)
    assert trainer.n_expert_labels == len(trainer.expert_policy.asked) == 13
    assert len(trainer.demonstrations) == 30 + 13


def test_a_round_without_labels_ends_without_a_training(tmp_path: Path) -> None:
    trainer = make(tmp_path, lambda obs, acts: np.zeros(len(acts), dtype=bool))
    train(trainer)
    first = weights(trainer.policy)
    train(trainer)
    assert trainer.num_timesteps >= 40
    assert (trainer.n_expert_labels, trainer.round_num) == (0, 1)
    assert th.equal(weights(trainer.policy), first)
    trainer.gate = ask_always
    train(trainer)
    assert len(trainer.demonstrations) == 30 + trainer.n_expert_labels > 30


def test_the_number_of_labels_is_logged(tmp_path: Path) -> None:
    logger = imit_logger.configure(tmp_path / "log", ["csv"])
    trainer = make(tmp_path, on_the_right, custom_logger=logger)
    train(trainer)
    header, *rows = (tmp_path / "log" / "progress.csv").read_text().splitlines()
    column = header.split(",").index("dagger/expert_labels")
    assert [row.split(",")[column] for row in rows][-1] == str(trainer.n_expert_labels)


def test_the_gate_sees_what_the_learner_would_do(tmp_path: Path) -> None:
    pairs = []

    def gate(obs: np.ndarray, acts: np.ndarray) -> np.ndarray:
        pairs.append((obs, acts))
        return np.zeros(len(acts), dtype=bool)

    trainer = make(tmp_path, gate, n_envs=2)
    train(trainer)
    for obs, acts in pairs:
        np.testing.assert_array_equal(acts, trainer.policy.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize(
    ("returned", "found"),
    [(np.ones(1), "float64"), (np.ones(2, bool), r"\(2,\)"), (True, r"shape \(\)")],
)
def test_a_gate_that_returns_something_else_is_refused(
    returned: Any, found: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"gate: found .*{found}.*expected bool of shape \(1,\)"):
        train(make(tmp_path, lambda obs, acts: returned))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gate": 0.5}, TypeError, "gate is a float"),
        ({"max_labels": 0}, ValueError, "max_labels"),
        ({"takeover": "yes"}, TypeError, "takeover"),
        ({"expert_trajs": []}, ValueError, "expert_trajs: found none"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        make(tmp_path, **{"gate": ask_always, **arguments})


def test_a_folder_that_was_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "demos" / "round-000").mkdir(parents=True)
    with pytest.raises(ValueError, match="scratch_dir: found rounds"):
        make(tmp_path, gate=ask_always)


def test_a_trainer_is_saved_with_its_counts(tmp_path: Path) -> None:
    trainer = make(tmp_path, ask_always, max_labels=7)
    train(trainer)
    checkpoint, _ = trainer.save_trainer()
    restored = th.load(checkpoint, weights_only=False)
    assert (restored.n_expert_labels, restored.max_labels) == (7, 7)
    assert restored.gate is ask_always
    assert th.equal(weights(restored.policy), weights(trainer.policy))


# --- the critic as a gate -----------------------------------------------------------------------

WITH_CRITIC: dict[str, Any] = {
    "dm_coef": 1.0,
    "critic_models": "state_action",
    "critic_kwargs": CRITIC_KWARGS,
}


def test_the_critics_gate_takes_its_threshold_anew_when_the_critic_was_fitted_again(
    tmp_path: Path,
) -> None:
    kept, held_out = hold_out(demonstrations(12), 0.5)
    learner = diffusion_bc(**WITH_CRITIC)
    gate = CriticGate(learner, held_out, false_alarm_rate=0.2)
    trainer = make(
        tmp_path,
        lambda obs, acts: gate(obs, acts) | on_the_right(obs, acts),
        learner=learner,
        expert_trajs=kept,
    )
    train(trainer)
    first, threshold = learner.critic, gate.threshold
    train(trainer)
    assert learner.critic is not first
    above = gate(held_out.obs, held_out.acts)
    assert gate.threshold != threshold
    assert above.dtype == bool
    assert above.sum() == np.floor(0.2 * (len(held_out) + 1)) - 1
    losses = learner.critic.mean_denoising_loss(held_out.obs, held_out.acts).numpy()
    np.testing.assert_array_equal(above, losses > gate.threshold)


@pytest.mark.parametrize(
    ("changes", "n_rows", "message"),
    [
        ({"dm_coef": 0.0}, 30, "trainer: found dm_coef=0"),
        ({"critic_models": "action"}, 30, "trainer: .*critic of 'action'"),
        ({}, 5, "false_alarm_rate of 0.1 needs at least 9"),
    ],
)
def test_a_gate_that_could_not_work_is_refused(
    changes: dict[str, Any], n_rows: int, message: str
) -> None:
    held_out = rollout.flatten_trajectories(demonstrations())[:n_rows]
    with pytest.raises(ValueError, match=message):
        CriticGate(diffusion_bc(**WITH_CRITIC | changes), held_out)


def test_a_learner_without_training_is_no_gate_yet() -> None:
    gate = CriticGate(diffusion_bc(**WITH_CRITIC), demonstrations())
    with pytest.raises(ValueError, match="expected one that was trained"):
        gate(np.zeros((1, 2), np.float32), np.zeros((1, 1), np.float32))


def test_rollouts_of_an_expert_can_be_given(tmp_path: Path) -> None:
    venv = DummyVecEnv([lambda: gym.wrappers.TimeLimit(RecordingLine(), 5)])
    found = rollout.rollout(
        CountingExpert(),
        venv,
        rollout.make_min_episodes(4),
        rng=np.random.default_rng(0),
        unwrap=False,
    )
    trainer = make(tmp_path, ask_always, expert_trajs=found)
    train(trainer)
    assert len(trainer.demonstrations) == sum(map(len, found)) + trainer.n_expert_labels
