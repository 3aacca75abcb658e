"""Problems and suites: names, demonstrations, and the cells that are asked for."""

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

pytest.importorskip("pandas")

from comparing import ORIGIN, line_setup, line_suite, tiny
from imitation.data import types
from toys import CRITIC_KWARGS, LINE_ENV_ID, weights

from benchmarks import problems, record
from benchmarks.cell import run_cell
from benchmarks.methods.base import Variant
from benchmarks.methods.diffusion_bc_paper import PaperDiffusionBC
from benchmarks.suites import SUITES, diagnosis, paper
from sb3_diffbc import DiffusionBC, DiffusionCritic, load_demonstrations
from sb3_diffbc.demonstrations import DemonstrationWarning
from sb3_diffbc.tasks import TASKS


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    """A folder with a file for each of the authors' sets."""
    for task in TASKS.values():
        if task.paper_file:
            env = gym.make(task.env_id)
            n_obs, n_acts = env.observation_space.shape[0], env.action_space.shape[0]
            rng = np.random.default_rng(0)
            data = {
                "obs": th.as_tensor(rng.normal(size=(8, n_obs)), dtype=th.float32),
                "actions": th.as_tensor(rng.uniform(-1, 1, size=(8, n_acts)), dtype=th.float32),
                "next_obs": th.as_tensor(rng.normal(size=(8, n_obs)), dtype=th.float32),
                "done": th.zeros(8),
            }
            th.save(data, tmp_path / task.paper_file)
    return tmp_path


# --- problems -----------------------------------------------------------------------------------


def test_default_problems_have_the_authors_demonstrations_where_they_are_given(
    authors: Path,
) -> None:
    assert problems.default_keys(None) == tuple(TASKS)
    assert problems.default_keys(authors) == (
        *("maze-paper", "fetch_pick", "hand_rotate"),
        *("cheetah-paper", "walker-paper", "ant_reach"),
    )


def test_both_sources_of_demonstrations_differ_in_key_title_and_data(authors: Path) -> None:
    bundled = problems.find_problem("maze", authors)
    paper = problems.find_problem("maze-paper", authors)
    assert (bundled.title, paper.title) == ("Maze", "Maze (authors' demonstrations)")
    assert bundled.env == paper.env
    data = bundled.demonstrations()
    described = bundled.describe(data)
    assert (described.source, described.transitions, described.episodes) == ("maze", 12_094, 100)
    other = paper.describe(paper.demonstrations())
    assert (other.source, other.transitions) == ("maze.pt", 8)
    assert other.sha256 != described.sha256


def test_a_problem_is_scored_at_the_paper_s_noise_and_learnt_at_that_of_the_demonstrations() -> (
    None
):
    problem = problems.find_problem("fetch_pick")
    assert problem.noise_ratio == problem.env.kwargs["noise_ratio"] == 1.25
    assert "noise_ratio" not in problem.training_env.kwargs


def test_what_is_odd_in_demonstrations_is_said_and_what_does_not_fit_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "odd.npz"
    dones = np.zeros(8, dtype=bool)
    np.savez(path, obs=np.ones((8, 2), np.float32), acts=np.zeros((8, 1), np.float32), dones=dones)
    problem = problems.own_problem(LINE_ENV_ID, str(path), "return")
    with pytest.warns(DemonstrationWarning, match="never changes"):
        problem.demonstrations()
    with pytest.raises(ValueError, match="obs"):
        problems.own_problem("Hopper-v4", str(path), "return").demonstrations()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("ant_reach-paper", r"tasks: found 'ant_reach-paper', expected some of maze"),
        ("maze-paper", r"--paper-data: maze-paper needs the folder"),
    ],
)
def test_problems_that_cannot_be_made_are_refused(key: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        problems.find_problem(key)
    with pytest.raises(ValueError, match=r"--paper-data: .*maze\.pt is not there"):
        problems.find_problem("maze-paper", tmp_path)
    with pytest.raises(ValueError, match=r"--env: 'Nowhere-v0' cannot be made"):
        problems.own_problem("Nowhere-v0", "mine.npz", "return")


# --- cells --------------------------------------------------------------------------------------


def test_cells_are_every_variant_with_every_seed_seed_after_seed(tmp_path: Path) -> None:
    suite = line_suite(
        tmp_path, tiny("bc"), tiny("gail"), n_seeds=3, n_interactive_seeds=1, first_seed=7
    )
    cells, notes = suite.cells(ORIGIN)
    assert not notes
    assert [cell.key[1:] for cell in cells] == [("bc", 7), ("gail", 7), ("bc", 8), ("bc", 9)]
    assert len({cell.name for cell in cells}) == 4
    cells, _ = suite.cells(ORIGIN, variants=["gail"], n_seeds=2)
    assert [cell.key[1:] for cell in cells] == [("gail", 7), ("gail", 8)]
    assert cells[0].config["evaluation"] == {
        **{"n_episodes": 4, "n_checkpoints": 3, "curve_episodes": 2},
        "first_curve_episode_seed": 500_000,
    }


def test_a_variant_that_does_not_suit_the_problem_is_left_out_with_a_reason(
    tmp_path: Path,
) -> None:
    greedy = dataclasses.replace(tiny("implicit_bc", batch_size=500), name="greedy")
    cells, notes = line_suite(tmp_path, greedy, tiny("bc")).cells(ORIGIN)
    assert [cell.variant.name for cell in cells] == ["bc"]
    [note] = notes
    assert note.startswith("greedy on sb3_diffbc_tests_Line-v0: ")
    assert "500" in note


# --- the suites ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SUITES))
def test_a_suite_has_its_name_its_defaults_and_distinct_variants(name: str, authors: Path) -> None:
    suite = SUITES[name]
    names = [variant.name for variant in suite.variants]
    assert suite.name == name
    assert len(set(names)) == len(names)
    assert set(suite.default_variants or names) <= set(names)
    for key in suite.default_tasks(authors):
        assert suite.problem(key, authors).key == key


def test_tuning_and_comparison_share_neither_episodes_nor_seeds() -> None:
    comparison = SUITES["comparison"]
    for other in (SUITES["defaults"], SUITES["diagnosis"]):
        assert other.first_seed + other.n_seeds <= comparison.first_seed
        assert other.evaluation.first_episode_seed >= 1_000_000


# --- the diagnosis ------------------------------------------------------------------------------


def pairs(n: int) -> types.Transitions:
    return load_demonstrations("maze")[:n]


def trained(**arguments: Any) -> DiffusionBC:
    made = DiffusionBC(
        demonstrations=pairs(64),
        env="sb3_diffbc/Maze-v0",
        seed=0,
        verbose=0,
        device="cpu",
        critic_kwargs=CRITIC_KWARGS,
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
    transitions, learner = pairs(64), trained()
    with th.no_grad():  # then the network says the demonstrations' mean, whatever it sees
        learner.policy.action_net[0].weight.zero_()
        learner.policy.action_net[0].bias.zero_()
    expected = np.var(transitions.acts, axis=0) / np.var(transitions.acts, axis=0, ddof=1)
    assert diagnosis.cloning_error(learner, transitions) == pytest.approx(expected.mean(), rel=1e-4)


def test_an_agent_that_does_what_the_expert_does_is_never_worse() -> None:
    learner, transitions = trained(), pairs(64)
    obs = th.as_tensor(transitions.obs, dtype=th.float32)
    with th.no_grad():
        own = learner.policy.get_distribution(obs).mode().numpy()
    found = diagnosis.critic_losses(learner, dataclasses.replace(transitions, acts=own), "x")
    assert found["l_diff/x/agent"] == pytest.approx(found["l_diff/x/expert"], rel=1e-3)
    with th.no_grad():
        learner.policy.action_net[0].bias.fill_(40)
    found = diagnosis.critic_losses(learner, transitions, "x")
    assert found["l_diff/x/agent"] != pytest.approx(found["l_diff/x/expert"], rel=1e-3)


def test_the_gradients_ratio_grows_with_the_coefficient() -> None:
    ratios = []
    for dm_coef in (1.0, 10.0):
        learner = trained(dm_clamp="none", bc_loss="mse", dm_coef=1.0)
        learner.dm_coef = dm_coef
        ratios.append(diagnosis.gradient_balance(learner, pairs(64)))
    assert ratios[1]["norm_ratio"] == pytest.approx(10 * ratios[0]["norm_ratio"], rel=1e-3)
    assert ratios[1]["cosine"] == pytest.approx(ratios[0]["cosine"], abs=1e-3)
    assert -1 <= ratios[0]["cosine"] <= 1


def test_a_diagnosed_cell_records_what_it_found(tmp_path: Path) -> None:
    sizes = {"n_updates": 20, "batch_size": 16, "averaged": True, "critic_kwargs": CRITIC_KWARGS}
    suite = line_suite(
        tmp_path,
        Variant("with", diagnosis.DiagnosedDiffusionBC, sizes),
        Variant("without", diagnosis.DiagnosedDiffusionBC, {**sizes, "dm_coef": 0.0}),
    )
    full, paired = (run_cell(cell) for cell in suite.cells(ORIGIN)[0])
    measures = full.measures
    assert measures["cloning_error/train"] != measures["cloning_error/held_out"]
    assert {"l_diff/held_out/agent", "active/train", "gradient/cosine"} <= measures.keys()
    assert 0 <= measures["score/averaged_weights"] <= 1
    only_with_critic = {"l_diff/held_out/agent", "gradient/cosine", "critic/best_step"}
    assert not only_with_critic & paired.measures.keys()


# --- the paper at its own budget ----------------------------------------------------------------


def test_all_seeds_share_one_critic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RUNS", tmp_path)
    methods = [
        PaperDiffusionBC(line_setup(tmp_path, seed=seed), n_updates=2, critic_steps=3)
        for seed in (0, 1)
    ]
    first, second = (method.fitted_critic() for method in methods)
    assert th.equal(weights(first), weights(second))
    assert not first.training
    [kept] = tmp_path.glob("paper/*.safetensors")
    assert th.equal(weights(DiffusionCritic.load(kept)), weights(first))


def test_the_maze_has_the_authors_critic(paper_data: Path) -> None:
    problem = problems.find_problem("maze-paper", paper_data)
    [bc, dbc, _] = (
        dataclasses.replace(
            cell, variant=dataclasses.replace(cell.variant, arguments={"n_updates": 2, **arguments})
        )
        for cell, arguments in zip(
            paper.SUITE.cells(ORIGIN, tasks=[problem.key], n_seeds=1, paper_data=paper_data)[0],
            ({"dm_coef": 0.0}, {}, {}),
            strict=True,
        )
    )
    method = dbc.variant.make(dbc.setup())
    assert isinstance(method, PaperDiffusionBC)
    released = DiffusionCritic.from_release(
        paper_data / "maze_ddpm.pt", dbc.transitions, **dbc.setup().spaces, device="cpu"
    )
    assert th.equal(weights(method.fitted_critic()), weights(released))
    without = bc.variant.make(bc.setup())
    without.train(lambda: None)
    assert isinstance(without, PaperDiffusionBC)
    assert without.trainer.critic is None
    assert without.trainer.optimizer.param_groups[0]["lr"] == 5e-5  # put back after its decay
