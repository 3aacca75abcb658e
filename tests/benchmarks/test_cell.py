"""A cell from start to end: what it records, and that measuring does not change it."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("pandas")

from comparing import TINY, line_cells, line_problem, tiny
from toys import LineEnv, policy, transitions

from benchmarks import cell as cells
from benchmarks.methods import METHODS
from benchmarks.methods.sampling import SamplingPolicy
from sb3_diffbc import evaluate_episodes

UNTOLD_ENV_ID = "sb3_diffbc_tests/UntoldLine-v0"
if UNTOLD_ENV_ID not in gym.registry:
    gym.register(UNTOLD_ENV_ID, entry_point=LineEnv, kwargs={"reports_success": False})


@pytest.mark.parametrize("name", ["bc", "diffusion_bc", "diffusion_policy", "gail"])
def test_a_record_holds_scores_curve_and_measures(name: str, tmp_path: Path) -> None:
    [cell] = line_cells(tmp_path, tiny(name))
    record = cells.run_cell(cell)
    assert record.key == (cell.problem.key, name, 100)
    assert len(record.scores) == 4
    assert record.machine["threads_per_cell"] == 1
    assert {"python", "torch", "mujoco", "sb3-diffbc"} <= record.versions.keys()
    assert (record.command, record.git_revision) == ("python -m benchmarks", "abc123")
    measures = record.measures
    assert measures["seconds/training"] > 0
    assert measures["cpu_seconds/evaluation"] > 0
    assert measures["n_parameters"] > 0
    assert ("seconds/critic" in measures) == (name == "diffusion_bc")
    if name == "gail":
        # A round is 8 environments with 256 steps, learnt from 10 times in batches of 128.
        assert [(c.updates, c.env_steps) for c in record.curve] == [(160, 2048)]
    else:
        assert [(c.updates, c.env_steps) for c in record.curve] == [(4, 0), (8, 0), (12, 0)]
        assert measures["updates"] == 12


def test_every_method_meets_the_same_demonstrations_and_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: dict[str, list[int]] = {}
    original = LineEnv.reset

    def reset(self: LineEnv, *, seed: int | None = None, options: Any = None) -> Any:
        starts[cell.variant.name].append(-1 if seed is None else seed)
        return original(self, seed=seed, options=options)

    monkeypatch.setattr(LineEnv, "reset", reset)
    hashes = set()
    for cell in line_cells(tmp_path, tiny("bc"), tiny("bc_paired"), tiny("implicit_bc")):
        starts[cell.variant.name] = []
        hashes.add(cells.run_cell(cell).demonstrations.sha256)
    assert len(hashes) == 1
    assert starts["bc"] == [500_000, 500_001] * 3 + [0, 1, 2, 3]
    assert starts["bc"] == starts["bc_paired"] == starts["implicit_bc"]


@pytest.mark.parametrize("name", METHODS)
def test_the_curve_does_not_change_what_is_learnt(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []

    def act(actor: Any, demonstrations: Any, n_predictions: int) -> float:
        # Called when training and evaluation are over.
        if isinstance(actor, SamplingPolicy):
            actor.reset_noise()
        ends.append(actor.predict(demonstrations.obs, deterministic=True)[0])
        return 0.0

    monkeypatch.setattr(cells, "inference_ms", act)
    for n_checkpoints in (0, 3):
        evaluation = dataclasses.replace(TINY, n_checkpoints=n_checkpoints)
        [cell] = line_cells(tmp_path, tiny(name), evaluation=evaluation)
        cells.run_cell(cell)
    np.testing.assert_array_equal(*ends)


def test_scores_are_those_of_the_library_on_the_same_seeds(tmp_path: Path) -> None:
    actor = policy(LineEnv.observation_space, LineEnv.action_space)
    problem = line_problem(tmp_path)
    expected = evaluate_episodes(actor, problem.env, n_episodes=5, seed=30)
    assert expected.successes is not None
    assert cells.score(actor, problem, 5, 30) == expected.successes.astype(float).tolist()
    by_return = dataclasses.replace(problem, metric="return")
    assert cells.score(actor, by_return, 5, 30) == expected.returns.tolist()


def test_one_training_is_scored_in_further_environments_too(tmp_path: Path) -> None:
    problem = line_problem(tmp_path)
    farther = copy.deepcopy(problem.env)
    farther.kwargs["offset"] = -50.0
    wider = dataclasses.replace(problem, further_envs={"same": problem.env, "farther": farther})
    [alone], [cell] = (line_cells(tmp_path, problem=lambda *_, p=p: p) for p in (problem, wider))
    record = cells.run_cell(cell)
    assert record.scores == cells.run_cell(alone).scores
    assert record.measures["score/same"] == np.mean(record.scores) > 0
    assert record.measures["score/farther"] == 0
    assert cell.difference(record) == ""
    assert alone.difference(record) == "config, evaluation"


def test_success_that_is_not_told_is_an_error(tmp_path: Path) -> None:
    problem = dataclasses.replace(line_problem(tmp_path), env=gym.spec(UNTOLD_ENV_ID))
    actor = policy(LineEnv.observation_space, LineEnv.action_space)
    with pytest.raises(RuntimeError, match="did not tell 'is_success'"):
        cells.score(actor, problem, 2, 0)


def test_latency_is_the_median_of_single_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    # Slow while warming up, then 1, 2, 3, 4 and 50 ms.
    durations = [0.9] * cells._WARM_UP + [0.001, 0.002, 0.003, 0.004, 0.05]
    times = iter([time for n, duration in enumerate(durations) for time in (n, n + duration)])
    monkeypatch.setattr(cells.time, "perf_counter", lambda: next(times))
    shapes = set()

    class Actor:
        def predict(self, observation: np.ndarray, deterministic: bool) -> None:
            shapes.add(observation.shape)
            assert deterministic

    assert cells.inference_ms(Actor(), transitions(n=7), 5) == pytest.approx(3)  # type: ignore[arg-type]
    assert shapes == {(3,)}


def test_a_record_of_other_settings_or_demonstrations_is_told(tmp_path: Path) -> None:
    [cell] = line_cells(tmp_path)
    record = cells.run_cell(cell)
    assert cell.difference(record) == ""
    changed = dataclasses.replace(cell, config=cell.config | {"batch_size": 64})
    assert changed.difference(record) == "config, batch_size"
    later = dataclasses.replace(cell, evaluation=dataclasses.replace(TINY, first_episode_seed=9))
    assert later.difference(record) == "first_episode_seed"
    assert cell.difference(record.model_copy(update={"title": "Another title"})) == ""
    [other] = line_cells(tmp_path, problem=lambda *_: line_problem(tmp_path, seed=1))
    assert other.difference(record) == "demonstrations"


def test_a_setting_that_came_after_a_record_counts_only_where_it_is_used(tmp_path: Path) -> None:
    [cell] = line_cells(tmp_path, tiny("bc_paired"))
    record = cells.run_cell(cell)
    config = {k: v for k, v in record.config.items() if k != "validation_fraction"}
    assert len(config) < len(record.config)
    before = record.model_copy(update={"config": config})
    assert cell.difference(before) == ""
    used = dataclasses.replace(cell, config=cell.config | {"validation_fraction": 0.5})
    assert used.difference(before) == "config, validation_fraction"
