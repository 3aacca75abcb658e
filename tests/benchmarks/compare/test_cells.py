"""A cell from start to end: what it records, and that measuring does not change it."""

import dataclasses
import json
import resource
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from comparing import TINY, line_task, make_cell, setup_of, write_demonstrations
from toys import LineEnv, policy, transitions, weights

from benchmarks import provenance
from benchmarks.compare import cells
from benchmarks.compare.methods import METHODS
from benchmarks.compare.phases import Phases
from benchmarks.records import check_record, record_path
from sb3_diffbc import evaluate_episodes


class TestRecord:
    @pytest.mark.parametrize("key", ["bc", "diffusion_bc", "diffusion_policy"])
    def test_is_what_result_files_hold(self, key: str, tmp_path: Path) -> None:
        record = cells.run_cell(make_cell(tmp_path, key))
        check_record(record, record_path(tmp_path, record["task"], key, 100))
        assert json.loads(json.dumps(record)) == record
        assert len(record["scores"]) == 4
        assert [entry["updates"] for entry in record["curve"]] == [4, 8, 12]
        assert all(len(entry["scores"]) == 2 for entry in record["curve"])
        assert record["updates"] == 12
        assert record["env_steps"] == 0
        assert record["machine"]["threads_per_cell"] == 1

    def test_has_a_time_for_each_phase(self, tmp_path: Path) -> None:
        record = cells.run_cell(make_cell(tmp_path, "diffusion_bc"))
        phases = {"prepare", "critic", "training", "curve", "evaluation"}
        assert record["seconds"].keys() == record["cpu_seconds"].keys() == phases
        assert all(seconds > 0 for seconds in record["seconds"].values())

    def test_is_the_same_again_but_for_what_was_timed(self, tmp_path: Path) -> None:
        first, second = (cells.run_cell(make_cell(tmp_path, "diffusion_policy")) for _ in range(2))
        timed = {"seconds", "cpu_seconds", "inference_ms", "peak_memory_mb"}
        for name in first.keys() - timed:
            assert first[name] == second[name]

    def test_every_method_meets_the_same_demonstrations_and_episodes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        starts: dict[str, list[int]] = {}
        original = LineEnv.reset

        def reset(self: LineEnv, *, seed: int | None = None, options: Any = None) -> Any:
            starts[key].append(-1 if seed is None else seed)
            return original(self, seed=seed, options=options)

        task = line_task(tmp_path)
        monkeypatch.setattr(LineEnv, "reset", reset)
        hashes = set()
        for key in ("bc", "bc_paired", "implicit_bc"):
            starts[key] = []
            record = cells.run_cell(make_cell(tmp_path, key, task=task))
            hashes.add(record["demonstrations"]["sha256"])
        assert len(hashes) == 1
        assert starts["bc"] == [500_000, 500_001] * 3 + [0, 1, 2, 3]
        assert starts["bc"] == starts["bc_paired"] == starts["implicit_bc"]

    def test_demonstrations_that_have_changed_meanwhile_are_refused(self, tmp_path: Path) -> None:
        cell = make_cell(tmp_path)
        write_demonstrations(Path(str(cell.task.source)), seed=9)
        with pytest.raises(ValueError, match="have changed meanwhile"):
            cells.run_cell(cell)


class TestCurve:
    @pytest.mark.parametrize("key", METHODS)
    def test_does_not_change_what_is_learnt(self, key: str, tmp_path: Path) -> None:
        ends = []
        for with_curve in (False, True):
            cell = make_cell(tmp_path, key)
            learner = METHODS[key].make(setup_of(cell))
            curve = cells.Curve(cell, learner, Phases())
            phases = Phases()
            with phases("training"):
                learner.train(phases, curve if with_curve else lambda done: None)
            ends.append(weights(learner.policy))
            assert len(curve.entries) == with_curve * min(3, learner.length)
        assert th.equal(*ends)

    def test_is_charged_apart_from_training(self, tmp_path: Path) -> None:
        cell = make_cell(tmp_path)
        learner = METHODS["bc"].make(setup_of(cell))
        phases = Phases()
        curve = cells.Curve(cell, learner, phases)
        with phases("training"):
            curve(1)
            assert "curve" not in phases.seconds
            curve(4)
        assert phases.seconds["curve"] > 0
        assert len(curve.entries) == 1


class TestEvaluate:
    def test_scores_are_those_of_the_library_on_the_same_seeds(self, tmp_path: Path) -> None:
        actor = policy(LineEnv.observation_space, LineEnv.action_space)
        task = line_task(tmp_path)
        expected = evaluate_episodes(actor, task.env, n_episodes=5, seed=30)
        assert cells.evaluate(actor, task, 5, 30) == [float(s) for s in expected.successes]
        by_return = dataclasses.replace(task, metric="return")
        assert cells.evaluate(actor, by_return, 5, 30) == expected.returns.tolist()

    def test_a_sampling_policy_scores_the_same_whenever_it_is_asked(self, tmp_path: Path) -> None:
        cell = make_cell(tmp_path, "diffusion_policy")
        actor = METHODS["diffusion_policy"].make(setup_of(cell)).policy
        task = dataclasses.replace(cell.task, metric="return")
        first = cells.evaluate(actor, task, 3, 0)
        actor.predict(np.zeros(2, np.float32))
        assert cells.evaluate(actor, task, 3, 0) == first

    def test_success_that_is_not_told_is_an_error(self, tmp_path: Path) -> None:
        env_id = "sb3_diffbc_tests/UntoldLine-v0"
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=LineEnv, kwargs={"reports_success": False})
        task = line_task(tmp_path, env=gym.spec(env_id))
        actor = policy(LineEnv.observation_space, LineEnv.action_space)
        with pytest.raises(RuntimeError, match="did not tell 'is_success'"):
            cells.evaluate(actor, task, 2, 0)


class TestInference:
    def test_is_the_median_of_single_predictions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = iter(
            [
                value
                for index in range(cells._WARM_UP + 5)
                # Slow while warming up, then 1, 2, 3, 4 and 50 ms.
                for value in (
                    index,
                    index
                    + (0.9 if index < cells._WARM_UP else [1, 2, 3, 4, 50][index - 20] / 1000),
                )
            ]
        )
        monkeypatch.setattr(cells.time, "perf_counter", lambda: next(times))
        shapes = []

        class Actor:
            def predict(self, observation: np.ndarray, deterministic: bool) -> None:
                shapes.append(observation.shape)
                assert deterministic

        demonstrations = transitions(n=7)
        assert cells.inference_ms(Actor(), demonstrations, 5) == pytest.approx(3)
        assert set(shapes) == {(3,)}


class TestMachine:
    def test_peak_memory_is_at_least_what_is_held_now(self) -> None:
        block = np.ones(10_000_000)
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        assert block.nbytes / 1e6 < cells.peak_memory_mb() <= held * 1.01

    def test_peak_memory_is_the_kernels_count_where_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        status = "Name:\tpython\nVmHWM:\t    2000 kB\nVmRSS:\t    1000 kB\n"
        monkeypatch.setattr(cells.Path, "read_text", lambda path: status)
        assert cells.peak_memory_mb() == 2.048

    def test_peak_memory_is_known_without_the_kernels_count_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = cells.peak_memory_mb()

        def refuse(path: Path) -> str:
            raise FileNotFoundError

        monkeypatch.setattr(cells.Path, "read_text", refuse)
        assert cells.peak_memory_mb() == pytest.approx(expected, rel=0.2)

    def test_versions_and_processor_have_names(self) -> None:
        assert {"python", "torch", "mujoco", "sb3-diffbc"} <= cells.versions().keys()
        assert all(cells.versions().values())
        assert provenance.processor_name()


def test_protocol_of_the_toy_is_used(tmp_path: Path) -> None:
    protocol = dataclasses.replace(TINY, n_checkpoints=2, n_episodes=3)
    record = cells.run_cell(make_cell(tmp_path, protocol=protocol))
    assert len(record["curve"]) == 2
    assert len(record["scores"]) == 3
