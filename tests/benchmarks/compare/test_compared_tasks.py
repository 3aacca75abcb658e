"""Tasks of the comparison: keys, demonstrations, and a user's own."""

import dataclasses
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from comparing import line_task, write_demonstrations
from toys import LINE_ENV_ID, LineEnv

from benchmarks.compare import tasks
from benchmarks.records import record_path
from sb3_diffbc.demonstrations import DemonstrationWarning
from sb3_diffbc.tasks import TASKS

SILENT_ENV_ID = "sb3_diffbc_tests/SilentLine-v0"
if SILENT_ENV_ID not in gym.registry:
    gym.register(SILENT_ENV_ID, entry_point=LineEnv, kwargs={"reports_success": False})


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    """A folder with a file for each of the authors' sets."""
    for task in TASKS.values():
        if task.paper_file:
            spaces = gym.make(task.env_id)
            n_obs, n_acts = spaces.observation_space.shape[0], spaces.action_space.shape[0]
            rng = np.random.default_rng(0)
            data = {
                "obs": th.as_tensor(rng.normal(size=(8, n_obs)), dtype=th.float32),
                "actions": th.as_tensor(rng.uniform(-1, 1, size=(8, n_acts)), dtype=th.float32),
                "next_obs": th.as_tensor(rng.normal(size=(8, n_obs)), dtype=th.float32),
                "done": th.zeros(8),
            }
            th.save(data, tmp_path / task.paper_file)
    return tmp_path


class TestKeys:
    def test_are_the_papers_tasks_with_bundled_demonstrations(self) -> None:
        assert tasks.keys() == tuple(TASKS)

    def test_take_the_authors_demonstrations_where_there_are_any(self, authors: Path) -> None:
        assert tasks.keys(authors) == (
            *("maze-paper", "fetch_pick", "hand_rotate"),
            *("cheetah-paper", "walker-paper", "ant_reach"),
        )

    def test_all_have_a_place_for_results(self, tmp_path: Path) -> None:
        places = {record_path(tmp_path, key, "bc", 0) for key in tasks.all_keys()}
        assert len(places) == len(TASKS) + 3


class TestFind:
    def test_both_sources_of_demonstrations_differ_in_key_title_and_data(
        self, authors: Path
    ) -> None:
        bundled, paper = tasks.find("maze", authors), tasks.find("maze-paper", authors)
        assert (bundled.title, paper.title) == ("Maze", "Maze (authors' demonstrations)")
        assert (bundled.source_name, paper.source_name) == ("maze", "maze.pt")
        assert len(bundled.demonstrations()) == 12_094
        assert len(paper.demonstrations()) == 8
        assert bundled.env == paper.env

    def test_evaluates_at_the_papers_noise_and_trains_at_that_of_the_demonstrations(self) -> None:
        task = tasks.find("fetch_pick")
        assert task.noise_ratio == 1.25
        assert task.env.kwargs["noise_ratio"] == 1.25
        assert "noise_ratio" not in task.training_env.kwargs

    @pytest.mark.parametrize("key", TASKS)
    def test_every_task_has_its_metric_and_time_limit(self, key: str) -> None:
        task = tasks.find(key)
        assert (task.metric, task.horizon) == (TASKS[key].metric, TASKS[key].horizon)

    def test_an_unknown_key_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"task: found 'ant_reach-paper', expected one of"):
            tasks.find("ant_reach-paper")

    def test_the_authors_demonstrations_need_their_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"--paper-data: maze-paper needs the folder"):
            tasks.find("maze-paper")
        with pytest.raises(ValueError, match=r"--paper-data: .*maze\.pt is not there"):
            tasks.find("maze-paper", tmp_path)


class TestOwn:
    def test_counts_success_where_the_environment_tells_it(self, tmp_path: Path) -> None:
        source = write_demonstrations(tmp_path / "mine.npz")
        task = tasks.own(LINE_ENV_ID, str(source))
        assert (task.metric, task.source_name) == ("success", "mine.npz")
        assert tasks.own(LINE_ENV_ID, str(source), "return").metric == "return"
        assert tasks.own(SILENT_ENV_ID, str(source)).metric == "return"

    def test_has_a_name_that_results_can_bear(self, tmp_path: Path) -> None:
        task = tasks.own(LINE_ENV_ID, "mine.npz")
        assert task.key == "sb3_diffbc_tests_Line-v0"
        assert record_path(tmp_path, task.key, "bc", 0).is_relative_to(tmp_path)
        assert task.title == LINE_ENV_ID

    def test_takes_the_length_of_an_episode_where_there_is_no_time_limit(self) -> None:
        assert 2 <= tasks.own(LINE_ENV_ID, "mine.npz").horizon <= 6
        assert tasks.own("Hopper-v4", "mine.npz").horizon == 1000

    def test_success_that_is_never_told_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"--metric: found 'success', but .*is_success"):
            tasks.own(SILENT_ENV_ID, "mine.npz", "success")

    @pytest.mark.parametrize("env_id", ["Nowhere-v0", "no_such_module:Env-v0", "not an id"])
    def test_an_environment_that_cannot_be_made_is_refused(self, env_id: str) -> None:
        with pytest.raises(ValueError, match=r"--env: .* cannot be made"):
            tasks.own(env_id, "mine.npz")


class TestDemonstrations:
    def test_are_loaded_without_a_word(
        self, tmp_path: Path, recwarn: pytest.WarningsRecorder
    ) -> None:
        path = tmp_path / "same.npz"
        np.savez(path, obs=np.zeros((9, 2), np.float32), acts=np.ones((9, 1), np.float32))
        task = line_task(tmp_path, source=str(path))
        assert len(task.demonstrations()) == 9
        assert not recwarn.list

    def test_are_checked_aloud_once(self, tmp_path: Path) -> None:
        path = tmp_path / "same.npz"
        np.savez(path, obs=np.zeros((9, 2), np.float32), acts=np.full((9, 1), 3, np.float32))
        with pytest.warns(DemonstrationWarning) as said:
            tasks.checked_demonstrations(line_task(tmp_path, source=str(path)))
        text = " ".join(str(warning.message) for warning in said)
        assert "never changes" in text
        assert "leave the bounds" in text

    def test_that_do_not_fit_the_environment_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "wide.npz"
        np.savez(path, obs=np.zeros((9, 5), np.float32), acts=np.zeros((9, 1), np.float32))
        with pytest.warns(DemonstrationWarning), pytest.raises(ValueError, match="shape"):
            tasks.checked_demonstrations(line_task(tmp_path, source=str(path)))

    def test_differ_in_their_fingerprint_and_nothing_else_does(self, tmp_path: Path) -> None:
        first, second = line_task(tmp_path, 0), line_task(tmp_path, 1)
        fingerprints = [
            tasks.described(task, task.demonstrations())["sha256"] for task in (first, second)
        ]
        assert fingerprints[0] != fingerprints[1]
        moved = dataclasses.replace(first, source=first.demonstrations())
        assert tasks.described(moved, moved.demonstrations())["sha256"] == fingerprints[0]

    def test_say_how_many_episodes_they_hold(self) -> None:
        task = tasks.find("maze")
        described = tasks.described(task, task.demonstrations())
        assert (described["episodes"], described["transitions"]) == (100, 12_094)
        assert described["source"] == "maze"
