"""The study of generalisation: what its problems demonstrate, and where they are scored."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("pandas")

from toys import CONTINUOUS, VECTOR, transitions

from benchmarks import record
from benchmarks.methods.base import Setup
from benchmarks.suites import shift
from benchmarks.suites.shift import shift_problem
from sb3_diffbc import StandardizedActorPolicy, load_demonstrations
from sb3_diffbc.demonstrations.batches import fingerprint
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.envs.maze import cell_of


def ratios(spec: Any) -> tuple[float, float]:
    return spec.kwargs.get("noise_ratio", 1.0), spec.kwargs.get("goal_noise_ratio", 1.0)


def test_fetch_pick_is_scored_at_growing_noise_of_start_and_goal() -> None:
    problem = shift_problem("fetch_pick@1")
    assert (ratios(problem.env), ratios(problem.training_env)) == ((1, 1), (1, 1))
    assert {name: ratios(env) for name, env in problem.further_envs.items()} == {
        "noise_1.25": (1.25, 1.25),
        "noise_1.5": (1.5, 1.5),
        "noise_1.75": (1.75, 1.75),
        "noise_2": (2, 2),
    }
    assert problem.source == "fetch_pick"


def test_ant_reach_is_demonstrated_without_start_noise_and_keeps_its_goals() -> None:
    problem = shift_problem("ant_reach@0")
    assert (ratios(problem.env), ratios(problem.training_env)) == ((0, 1), (0, 1))
    assert {name: ratios(env) for name, env in problem.further_envs.items()} == {
        "noise_1": (1, 1),
        "noise_3": (3, 1),
        "noise_5": (5, 1),
    }


@pytest.fixture
def _short_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RUNS", tmp_path)
    monkeypatch.setattr(shift, "ANT_REACH_TRANSITIONS", 80)


@pytest.mark.usefixtures("_short_recordings")
def test_the_expert_is_recorded_once_and_the_same_way_each_time(tmp_path: Path) -> None:
    problem = shift_problem("ant_reach@0")
    first = problem.demonstrations()
    starts = first.obs[np.flatnonzero([True, *first.dones[:-1]])]
    assert len(starts) > 1
    assert len(np.unique(starts[:, :27], axis=0)) == 1  # pose and velocities, but
    assert len(np.unique(starts[:, 27:], axis=0)) == len(starts)  # not the ways to the goals
    recording = Path(problem.source)
    [kept] = tmp_path.glob("shift/*.npz")
    assert kept == recording
    written = recording.stat().st_mtime_ns
    assert fingerprint(problem.demonstrations()) == fingerprint(first)
    assert recording.stat().st_mtime_ns == written
    recording.unlink()
    assert fingerprint(problem.demonstrations()) == fingerprint(first)


@pytest.mark.usefixtures("_short_recordings")
def test_the_marker_moves_with_the_starts_noise_alone_and_never_the_ant() -> None:
    problem = shift_problem("ant_reach_marked@0")
    demonstrations = problem.demonstrations()
    orientation = slice(32, 36)
    assert np.ptp(demonstrations.obs[:, orientation], axis=0).max() < 0.01
    assert np.ptp(demonstrations.obs[:, 31]) > 1  # the height, in metres

    marked, plain = gym.make(problem.further_envs["noise_1"]), gym.make("sb3_diffbc/AntReach-v0")
    obs, _ = marked.reset(seed=0)
    plain.reset(seed=0)
    task: Any = marked.unwrapped
    own: Any = plain.unwrapped
    np.testing.assert_allclose(obs[27:29] + task._data.qpos[:2], obs[29:31], atol=1e-6)
    own._data.qpos[:], own._data.qvel[:] = task._data.qpos[:15], task._data.qvel[:14]
    own._goal = task.goal
    for _ in range(40):
        action = marked.action_space.sample()
        obs, own_obs = marked.step(action)[0], plain.step(action)[0]
    np.testing.assert_allclose(obs[:29], own_obs, atol=1e-3)
    assert np.ptp([obs[orientation], demonstrations.obs[0, orientation]], axis=0).max() > 0.1


def test_a_part_of_the_goals_keeps_whole_trajectories_to_them() -> None:
    everything = load_demonstrations("maze")
    assert fingerprint(shift_problem("maze@100").demonstrations()) == fingerprint(everything)
    lengths = [*lengths_of(everything.dones)]
    goals = {cell_of(goal) for goal in everything.obs[:, 4:6]}
    smaller: frozenset[Any] = frozenset()
    for percentage in (25, 50, 75):
        problem = shift_problem(f"maze@{percentage}")
        assert isinstance(problem, shift.CoveredMaze)
        kept = problem.demonstrations()
        found = {cell_of(goal) for goal in kept.obs[:, 4:6]}
        assert found == goals & problem.covered()
        assert problem.covered() > smaller
        smaller = problem.covered()
        of_these = [cell_of(goal) in smaller for goal in everything.obs[everything.dones, 4:6]]
        assert [*lengths_of(kept.dones)] == list(np.array(lengths)[of_these])
        assert problem.env == shift_problem("maze@100").env


@pytest.mark.parametrize("key", ["fetch_pick@1.25", "maze", "maze@30", "ant_reach-paper@0"])
def test_a_problem_that_is_not_of_the_study_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"tasks: found '{key}', expected some of fetch_pick@1,"):
        shift_problem(key)


def test_default_variants_clone_with_three_losses_and_three_critics() -> None:
    by_name = {variant.name: variant for variant in shift.SUITE.variants}
    chosen = [by_name[name].arguments for name in shift.SUITE.default_variants or ()]
    of_losses = {(a.get("bc_loss"), a["dm_coef"]) for a in chosen if "policy" not in a}
    assert of_losses == {(loss, dm) for loss in ("nll", "mse", "l1") for dm in (0.0, 1.0, 3.0)}
    assert all(arguments["n_updates"] == 10_000 for arguments in chosen)


def test_a_raw_policy_differs_by_its_standardisation_alone() -> None:
    variants = {variant.name: variant for variant in shift.SUITE.variants}
    setup = Setup(transitions(n=80), VECTOR, CONTINUOUS, seed=0)
    raw, usual = (variants[name].make(setup) for name in ("raw mse, BC", "mse, BC"))
    settings = {"averaged", "policy", "policy_kwargs", "net_arch"}
    assert {k for k, v in raw.config.items() if usual.config.get(k) != v} <= settings
    assert isinstance(usual.policy, StandardizedActorPolicy)
    assert not isinstance(raw.policy, StandardizedActorPolicy)
    sizes = [
        [layer.out_features for layer in method.policy.mlp_extractor.policy_net[::2]]
        for method in (raw, usual)
    ]
    assert sizes[0] == sizes[1]
