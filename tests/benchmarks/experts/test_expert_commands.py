"""The experts' commands, as the command line runs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch as th
from graphics import draw
from toys import LINE_ENV_ID, weights

from benchmarks.experts import commands, page, scores
from sb3_diffbc import experts
from sb3_diffbc.demonstrations import check_card, read_card
from sb3_diffbc.tasks import TASKS, DemonstrationSize, LearnedExpert


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of all that the commands write to, and two quick tasks."""
    monkeypatch.setattr(scores, "SCORES", tmp_path / "experts.csv")
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


def test_scores_are_of_each_noise_ratio_and_of_random_actions(folder: Path) -> None:
    commands.ScoreExperts(("maze",)).run()
    found = scores.expert_scores(folder / "experts.csv")
    assert found["who"].tolist() == ["expert", "expert", "random"]
    assert found["noise_ratio"].tolist() == [1.0, 2.0, 1.0]
    assert (found["mean"][:2] == 1.0).all()
    assert found["mean"][2] < 1.0
    assert ((found["low"] <= found["mean"]) & (found["mean"] <= found["high"])).all()
    assert (found["task"] == "maze").all()


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_training_saves_the_same_expert_again_and_scores_it(folder: Path) -> None:
    found = []
    for name in ("first", "again", "again"):
        commands.TrainExperts(("cheetah",), seed=1, checkpoints=folder / name).run()
        found.append(experts.load_expert("cheetah"))
    assert all(th.equal(weights(found[0]), weights(other)) for other in found[1:])
    assert found[0].predict(np.zeros(2, dtype=np.float32))[0].shape == (1,)
    assert set(scores.expert_scores(folder / "experts.csv")["task"]) == {"cheetah"}


def test_new_scores_take_the_place_of_the_tasks_old_ones(folder: Path) -> None:
    def rows(task: str, mean: float) -> pd.DataFrame:
        return pd.DataFrame({"task": [task, task], "who": ["expert", "random"], "mean": mean})

    path = folder / "experts.csv"
    for task, mean in (("maze", 0.1), ("walker", 0.2), ("maze", 0.3)):
        scores.save_scores(rows(task, mean), path)
    found = scores.expert_scores(path).groupby("task")["mean"].agg(list).to_dict()
    assert found == {"maze": [0.3, 0.3], "walker": [0.2, 0.2]}


class TestPage:
    @pytest.fixture(autouse=True)
    def _tabulate(self) -> None:
        pytest.importorskip("tabulate")

    @pytest.mark.parametrize("known", [True, False])
    def test_every_task_has_a_row_and_a_section(self, known: bool) -> None:
        committed = scores.expert_scores(page.PAGE.with_name("experts.csv"))
        text = page.page(committed if known else committed[:0])
        rows = [line for line in text.splitlines() if line.count("|") > 10][2:]
        assert [row.split("|")[1].strip() for row in rows] == [t.title for t in TASKS.values()]
        assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
            task.title for task in TASKS.values()
        ]
        assert all(("not scored" in row) is not known for row in rows)

    def test_a_row_shows_scores_in_the_unit_of_the_metric(self) -> None:
        score = {"mean": 0.875, "low": 0.6, "high": 0.95}
        given = pd.DataFrame(
            [
                {"task": "maze", "who": "expert", "noise_ratio": 1.0, **score},
                {"task": "walker", "who": "random", "noise_ratio": 1.0, "mean": -281.5}
                | {"low": -300.0, "high": -260.0},
            ]
        )
        table = page.task_table(given, ["task", "expert", "expert's score", "random actions"])
        maze, walker = (
            next(line for line in table.splitlines() if f"| {title} " in line)
            for title in ("Maze", "Walker")
        )
        assert "| scripted " in maze
        assert "| 87.5 % [60.0, 95.0] " in maze
        assert "| PPO, 2.5 M steps " in walker
        assert "| -282 [-300, -260] " in walker

    def test_the_committed_page_shows_the_committed_scores(self, folder: Path) -> None:
        committed = scores.expert_scores(page.PAGE.with_name("experts.csv"))
        assert page.PAGE.read_text(encoding="utf-8") == page.page(committed)


@pytest.mark.slow
def test_a_strip_shows_moments_of_an_episode(tmp_path: Path) -> None:
    script = """
from benchmarks.experts.page import film_strip
from sb3_diffbc import load_expert
from sb3_diffbc.tasks import TASKS
shown["strip"] = np.asarray(film_strip(load_expert("maze"), TASKS["maze"], 0))
"""
    strip = draw(script, tmp_path)["strip"]
    moments = np.split(strip[:240, : 4 * 244 - 4], [242, 486, 730], axis=1)
    assert len({moment[:, 4:236].tobytes() for moment in moments}) == 4
    assert (strip[240:] < 128).any(axis=(0, 2)).sum() > 40  # the steps, in letters
