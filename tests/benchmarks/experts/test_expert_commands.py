"""The experts' commands, as the command line runs them."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch as th
from toys import LINE_ENV_ID, weights

from benchmarks.experts import commands, page, scores
from sb3_diffbc import experts
from sb3_diffbc.demonstrations import check_card, read_card
from sb3_diffbc.envs import MazeEnv, MazeExpert
from sb3_diffbc.tasks import TASKS, DemonstrationSize, LearnedExpert

COMMITTED = scores.SCORES


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of all that the commands write to, and two quick tasks."""
    monkeypatch.setattr(scores, "SCORES", tmp_path / "experts.csv")
    scores.SCORES.write_text("task,who,mean\nant_reach,expert,0.5\n")
    monkeypatch.setattr(scores, "SCORE_EPISODES", 3)
    monkeypatch.setattr(commands, "EXPERTS", tmp_path)
    monkeypatch.setattr(experts.resources, "files", lambda _: tmp_path)
    maze = dataclasses.replace(TASKS["maze"], size=DemonstrationSize(2), noise_ratios=(1.0, 2.0))
    line = dataclasses.replace(
        TASKS["cheetah"],
        env_id=LINE_ENV_ID,
        expert=LearnedExpert(
            "PPO, briefly",
            timesteps=128,
            n_envs=2,
            net_arch=(8,),
            ppo={"n_steps": 32, "batch_size": 32, "n_epochs": 1},
        ),
    )
    monkeypatch.setattr(commands, "TASKS", {"maze": maze, "cheetah": line})
    return tmp_path


def test_demonstrations_are_the_same_bytes_for_the_same_seed(folder: Path) -> None:
    paths = []
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        commands.Demonstrate(("maze",), seed, folder / name).run()
        paths.append(folder / name / "maze.npz")
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other
    cards = [path.with_suffix(".json").read_bytes() for path in paths]
    assert cards[0] == cards[1] != cards[2]
    assert check_card(paths[0]) == []
    card = read_card(paths[0]).model_dump()
    assert card["command"] == "python -m benchmarks demonstrate maze --seed 3"
    assert (card["seed"], card["episodes"], card["expert_score"]["episodes"]) == (3, 2, 3)


def test_scores_are_of_each_noise_ratio_and_of_random_actions() -> None:
    commands.ScoreExperts(("maze",)).run()
    found = scores.expert_scores().query("task == 'maze'").reset_index()
    assert found["who"].tolist() == ["expert", "expert", "random"]
    assert found["noise_ratio"].tolist() == [1.0, 2.0, 1.0]
    assert (found["mean"][:2] == 1.0).all()
    assert found["mean"][2] < 1.0
    assert ((found["low"] <= found["mean"]) & (found["mean"] <= found["high"])).all()


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_training_saves_the_same_expert_again_and_scores_it() -> None:
    found = []
    for _ in range(2):
        commands.TrainExperts(("cheetah",), seed=1).run()
        found.append(experts.load_expert("cheetah"))
    assert th.equal(*map(weights, found))
    assert found[0].predict(np.zeros(2, dtype=np.float32))[0].shape == (1,)
    assert set(scores.expert_scores()["task"]) == {"ant_reach", "cheetah"}


def test_new_scores_take_the_place_of_the_tasks_old_ones() -> None:
    for task, mean in (("maze", 0.1), ("walker", 0.2), ("maze", 0.3)):
        rows = pd.DataFrame({"task": task, "who": ["expert", "random"], "mean": mean})
        scores.save_scores(rows)
    found = scores.expert_scores().groupby("task")["mean"].agg(list).to_dict()
    assert found == {"ant_reach": [0.5], "maze": [0.3, 0.3], "walker": [0.2, 0.2]}


def test_the_committed_page_shows_the_committed_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tabulate")
    monkeypatch.setattr(scores, "SCORES", COMMITTED)
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def test_a_strip_shows_moments_of_an_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    brightness = itertools.count()

    def render(env: MazeEnv) -> np.ndarray:
        return np.full((480, 480, 3), next(brightness), np.uint8)

    monkeypatch.setattr(MazeEnv, "render", render)
    strip = np.asarray(page.film_strip(MazeExpert(), TASKS["maze"], 0))
    moments = [int(strip[100, left + 100, 0]) for left in range(0, 4 * 244, 244)]
    assert moments == sorted(moments)
    assert (moments[0], moments[-1]) == (0, next(brightness) - 1)
    assert len(set(moments)) == 4
    assert (strip[240:] < 128).any(axis=(0, 2)).sum() > 40  # the steps, in letters
