"""The search for defaults: cells, what their files say, and the table of them."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
from scipy import stats

from benchmarks import defaults
from sb3_diffbc import DiffusionBC

BC = "3 x 128, mse, BC, 20k"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(defaults, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    task = dataclasses.replace(defaults.TASKS["maze-bundled"], n_episodes=2)
    monkeypatch.setitem(defaults.TASKS, "maze-bundled", task)
    variant = dataclasses.replace(defaults.VARIANTS[BC], n_batches=3, net_arch=(4,))
    monkeypatch.setitem(defaults.VARIANTS, BC, variant)


def plant(results: Path, variant: str, task: str, scores: list[float]) -> None:
    for seed, score in enumerate(scores):
        path = results / task / f"{defaults.slug(variant)}-{seed}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"task": task, "variant": variant, "score": score}))


def test_no_two_variants_share_settings_or_files() -> None:
    assert len({repr(v) for v in defaults.VARIANTS.values()}) == len(defaults.VARIANTS)
    assert len({defaults.slug(name) for name in defaults.VARIANTS}) == len(defaults.VARIANTS)


def test_every_argument_is_one_of_the_trainer() -> None:
    known = inspect.signature(DiffusionBC).parameters.keys()
    assert all(v.arguments.keys() <= known for v in defaults.VARIANTS.values())


def test_the_deciding_pair_differs_in_the_critic_alone() -> None:
    bc, full = (defaults.VARIANTS[name] for name in defaults.DECIDING)
    assert (bc.n_batches, bc.net_arch) == (full.n_batches, full.net_arch)
    assert bc.arguments["bc_loss"] == full.arguments["bc_loss"]
    assert (bc.arguments["dm_coef"], full.arguments["dm_coef"]) == (0.0, 1.0)


def test_names_say_what_the_settings_are() -> None:
    variant = defaults.VARIANTS["2 x 256, mse, p(s,a) 96 x 2 dm_coef=30, 40k, batch 128, lr 3e-4"]
    assert variant.net_arch == (256, 256)
    assert variant.n_batches == 40_000
    assert variant.arguments == {
        "bc_loss": "mse",
        "dm_coef": 30.0,
        "critic_models": "state_action",
        "critic_kwargs": {"width": 96, "depth": 2, "n_steps": 6000},
        "batch_size": 128,
        "optimizer_kwargs": {"lr": 3e-4},
    }


@pytest.mark.usefixtures("short")
def test_a_cell_writes_one_file_and_is_not_run_twice(results: Path, tmp_path: Path) -> None:
    defaults.run_cell("maze-bundled", BC, 7, tmp_path)
    [path] = results.glob("*/*.json")
    assert path.name == "3x128_mse_BC_20k-7.json"
    record = json.loads(path.read_text())
    assert (record["task"], record["variant"], record["seed"]) == ("maze-bundled", BC, 7)
    assert (record["n_batches"], record["net_arch"]) == (3, [4])
    assert record["score"] == sum(record["scores"]) / 2
    assert record["first_episode_seed"] == defaults.TUNING_SEED
    before = path.stat().st_mtime_ns
    defaults.run_cell("maze-bundled", BC, 7, tmp_path)
    assert path.stat().st_mtime_ns == before


def test_the_table_has_means_intervals_and_numbers_of_seeds(results: Path) -> None:
    plant(results, BC, "walker", [10.0, 20.0, 60.0])
    plant(results, BC, "maze-paper", [0.875])
    plant(results, defaults.DECIDING[1], "walker", [5.0, 5.0])
    low, _ = stats.t.interval(0.95, 2, loc=30.0, scale=stats.sem([10.0, 20.0, 60.0]))
    header, _, *rows = defaults.summarise().splitlines()
    assert header == "| variant | maze-paper | walker |"
    assert f"| {BC} | 87.5 % (1) | 30.0 ± {30 - low:.1f} (3) |" in rows
    assert any(r"p(a\|s) 96 x 2" in row and "| – | 5.0 ± 0.0 (2) |" in row for row in rows)
    assert len(rows) == 2
