"""The measurement of speed: its arithmetic, its stand-in for the release, and that it runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from scipy import stats

from benchmarks.release_critic import (
    CriticTraining,
    PolicyTraining,
    ReleaseNetwork,
    antithetic_levels,
    sigmoid_betas,
)
from benchmarks.speed import __main__ as speed
from benchmarks.speed import critic, denoisers, floor, growth, precision, report
from benchmarks.speed.settings import QUICK, Settings
from benchmarks.speed.timing import Block, Turns, in_turns, interval_of_median, summary
from sb3_diffbc.critic import NoiseSchedule


class TestInterval:
    def test_has_no_width_where_all_values_are_equal(self) -> None:
        assert interval_of_median([2.0] * 9) == (2, 2)
        assert interval_of_median([3.0]) == (3, 3)

    def test_is_that_of_the_binomial_for_a_median(self) -> None:
        # A resampled median of 1 to 11 is at most k when 6 of 11 draws are: for k = 2 that has a
        # probability of 0.7 %, for k = 3 one of 5.1 %, so the quantile at 2.5 % is 3.
        assert stats.binom.sf(5, 11, 2 / 11) < 0.025 < stats.binom.sf(5, 11, 3 / 11)
        assert interval_of_median(np.arange(1, 12)) == (3, 9)

    def test_is_the_same_again_and_does_not_depend_on_the_order(self) -> None:
        values = np.random.default_rng(1).lognormal(size=21)
        low, high = interval_of_median(values)
        assert interval_of_median(values) == (low, high)
        assert low < np.median(values) < high
        assert summary(values)["median"] == np.median(values)


class TestTurns:
    def test_contestants_alternate_and_the_first_one_changes(self) -> None:
        seen: list[str] = []
        blocks = {name: Block(lambda name=name: seen.append(name), 2) for name in "ab"}
        seconds = in_turns(blocks, 2)
        assert "".join(seen) == "ab" + "ab" + "ba"  # a block of each to warm up
        assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}

    def test_others_run_whenever_a_fit_evaluates(self) -> None:
        seen: list[int] = []
        turns = Turns({"other": Block(lambda: seen.append(1), 1)})
        for step in (10, 20, 30):
            turns.dump(step)
        assert len(seen) == 3
        assert turns.steps == 30
        assert {name: len(values) for name, values in turns.per_unit().items()} == {
            "fit": 2,
            "other": 2,
        }


class TestRelease:
    def test_forward_leaves_the_last_hidden_layer_out(self) -> None:
        network = ReleaseNetwork(3, width=8, depth=4, num_levels=5)
        pairs, levels = th.randn(6, 3), th.tensor([0, 1, 2, 3, 4, 4])
        weights = {name: value.detach().numpy() for name, value in network.named_parameters()}
        hidden = pairs.numpy()
        for i in range(3):
            hidden = hidden @ weights[f"hidden.{i}.weight"].T + weights[f"hidden.{i}.bias"]
            hidden = np.maximum(hidden + weights[f"levels.{i}.weight"][levels.numpy()], 0)
        expected = hidden @ weights["out.weight"].T + weights["out.bias"]
        np.testing.assert_allclose(network(pairs, levels).detach().numpy(), expected, atol=1e-5)
        assert "hidden.3.weight" in weights

    def test_has_the_noise_levels_of_the_library(self) -> None:
        th.testing.assert_close(sigmoid_betas(), NoiseSchedule("sigmoid").betas)

    def test_levels_are_antithetic(self) -> None:
        levels = antithetic_levels(10)
        assert (levels[:5] + levels[5:] == 999).all()
        assert len(antithetic_levels(7)) == 7

    def test_both_of_its_trainings_learn(self) -> None:
        th.manual_seed(0)
        obs = th.randn(256, 2)
        acts = obs.tanh()
        training = CriticTraining(th.cat([obs, acts], dim=-1), width=32)
        policy = PolicyTraining(obs, acts, training.network)
        before = (policy.policy(obs) - acts).square().mean()
        policy.run(200)
        assert (policy.policy(obs) - acts).square().mean() < before / 2


def test_the_judge_gives_every_fit_the_same_held_out_pairs(tmp_path: Path) -> None:
    settings = Settings(results=tmp_path, **QUICK)
    demonstrations = settings.demonstrations("maze")
    judge = critic.Judge(demonstrations, settings)
    assert len(judge.held_out) == len(demonstrations) // 10
    curves = [critic.our_curve(demonstrations, judge, seed, **settings.critic) for seed in (1, 2)]
    assert curves[0]["held_out_loss"] != curves[1]["held_out_loss"]
    assert judge._critic._fit_seed not in (1, 2)
    network = ReleaseNetwork(judge.train_pairs.shape[1], width=8)
    th.nn.init.zeros_(network.out.weight)
    th.nn.init.zeros_(network.out.bias)
    # Noise of variance 1 that is predicted to be 0.
    assert judge.loss(critic._Judged(network)) == pytest.approx(1, abs=0.1)


def test_the_release_curve_is_reused_for_the_same_settings_only(tmp_path: Path) -> None:
    settings = Settings(results=tmp_path, **QUICK)
    judge = critic.Judge(settings.demonstrations("maze"), settings)
    first = critic.cached_release_curve("maze", judge, settings)
    assert critic.cached_release_curve("maze", judge, settings) == first
    other = Settings(results=tmp_path, **QUICK | {"release_steps": 30})
    assert critic.cached_release_curve("maze", judge, other)["steps"][-1] == 30


def test_the_release_curve_ends_after_its_best_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {**QUICK, "release_steps": 1000, "release_every": 1, "release_patience": 3}
    settings = Settings(results=tmp_path, **sizes)
    judge = critic.Judge(settings.demonstrations("maze"), settings)
    losses = iter([5.0, 4.0, 2.0, 3.0, 1.5, 1.6, 1.7, 1.8, 0.1])
    monkeypatch.setattr(judge, "loss", lambda network: next(losses))
    curve = critic.release_curve(judge, settings)
    assert curve["held_out_loss"] == [5.0, 4.0, 2.0, 3.0, 1.5, 1.6, 1.7, 1.8]
    assert (curve["best_step"], curve["best_loss"]) == (4, 1.5)


def test_denoisers_are_fitted_once_and_differ_from_the_default_in_one_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {**QUICK, "critic": {"n_steps": 25}}
    settings = Settings(results=tmp_path, **sizes)
    monkeypatch.setattr(denoisers, "TASKS", ("maze",))
    chosen = [v for v in denoisers.VARIANTS if v.name in (denoisers.DEFAULT, "32 x 2")]
    monkeypatch.setattr(denoisers, "VARIANTS", chosen)
    first = denoisers.measure(settings)
    for rows in first["tasks"]["maze"].values():
        by_name = {row["variant"]: row for row in rows}
        assert by_name["32 x 2"]["best_loss"] != by_name[denoisers.DEFAULT]["best_loss"]
        for row in rows:
            curve = row["curve"]
            assert row["best_loss"] == min(curve["held_out_loss"])
            at = curve["steps"].index(row["best_step"])
            assert curve["held_out_loss"][at] == row["best_loss"]
            assert curve["seconds"][at] == row["seconds_to_best"]
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json"))
    assert len(files) == 4
    # A run that was stopped fits what is missing; times tell a new fit from a stored one.
    (tmp_path / files[0]).unlink()
    second = denoisers.measure(settings)
    models = Path(files[0]).parent.name.removeprefix("maze-")
    assert (first["tasks"]["maze"][models] == second["tasks"]["maze"][models]) is False
    other = next(m for m in first["tasks"]["maze"] if m != models)
    assert first["tasks"]["maze"][other] == second["tasks"]["maze"][other]


def test_variants_have_names_and_recipes_of_their_own() -> None:
    names = [variant.name for variant in denoisers.VARIANTS]
    assert len(set(names)) == len(names)
    recipes = [(str(variant.arguments), variant.cls) for variant in denoisers.VARIANTS]
    assert len(set(recipes)) == len(recipes)


def test_the_rate_of_the_variant_that_keeps_it_is_constant(tmp_path: Path) -> None:
    settings = Settings(results=tmp_path, **QUICK)
    demonstrations = settings.demonstrations("maze")
    judge = critic.Judge(demonstrations, settings)
    constant = denoisers.ConstantRate(
        judge, **critic.spaces_of(demonstrations), device="cpu", **settings.critic
    )
    optimizer = th.optim.Adam([th.nn.Parameter(th.zeros(1))], lr=0.5)
    schedule = constant._lr_schedule(optimizer, 3)
    for _ in range(3):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == 0.5


def test_precisions_are_compared_on_the_same_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "NETWORKS", precision.NETWORKS[:1])
    monkeypatch.setattr(precision, "BATCH_SIZES", (128,))
    settings = Settings(results=tmp_path, **QUICK)
    updates, fits = precision.measure(settings)["rows"]
    assert set(updates["ms"]) == {"float32", "bfloat16"}
    single, half = (fits["held_out_loss"][name] for name in ("float32", "bfloat16"))
    assert single != half
    assert single == pytest.approx(half, rel=0.02)
    assert updates["time_to_single"]["n"] == settings.blocks


def test_products_of_a_layer_that_learns() -> None:
    layer = th.nn.Linear(3, 4)
    made = floor.operations([floor.Products(layer, 10, True, 5)])
    shapes = [(tuple(a.shape), tuple(b.shape), tuple(c.shape)) for a, b, c in made]
    assert shapes == [
        ((10, 3), (3, 4), (10, 4)),
        ((4, 10), (10, 3), (4, 3)),
        ((5, 4), (4, 3), (5, 3)),
    ]


def test_a_curve_arrives_at_its_first_evaluation_that_is_as_good() -> None:
    curve = {"steps": [1, 2, 3], "seconds": [0.1, 0.2, 0.3], "held_out_loss": [3.0, 1.0, 0.5]}
    assert critic.reached(curve, 1.0) == (2, 0.2)
    assert critic.reached(curve, 0.4) is None


def test_random_transitions_hold_nothing_but_their_arrays() -> None:
    transitions = growth.random_transitions(7)
    assert transitions.obs.dtype == transitions.acts.dtype == np.float32
    assert len(transitions) == 7
    assert transitions.infos.strides == (0,)


def _ratio(median: float) -> dict[str, Any]:
    return {"median": median, "interval": [median * 0.9, median * 1.1], "n": 3}


_RUN = {"run": {"command": "python", "processor": "P", "threads": 2, "versions": {"torch": "9.9"}}}
_STEPS = {
    "rows": [
        {"batch": batch, "contestant": name, "ms": 1.0, "time_to_bc": _ratio(time)}
        for batch in (128, 1024)
        for name, time in {
            "imitation's BC": 1,
            "DiffusionBC, dm_coef=0": 0.4,
            "DiffusionBC": 0.8,
        }.items()
    ],
    **_RUN,
}


def test_markdown_says_which_targets_are_met() -> None:
    text = report.markdown({"steps": _STEPS})
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    assert lines["DiffusionBC, dm_coef=0: times as fast as BC, batch 128"].endswith(
        "| ≥ 2 | 2.5 (2.27 to 2.78) | met |"
    )
    assert lines["DiffusionBC, dm_coef=0: times as fast as BC, batch 1024"].endswith(
        "**not met** |"
    )
    assert lines["full loss: time relative to BC, batch 128"].endswith("0.8 (0.72 to 0.88) | met |")
    assert lines["full loss: time relative to BC, batch 1024"].endswith("**not met** |")
    assert "| ≥ 20 | not measured | – |" in text
    assert "## Updates\n" in text
    assert "## Growth" not in text


def test_every_critic_has_a_cell_for_each_task_and_model() -> None:
    fit = {"ms_per_step": 1.25, "best_loss": 0.5, "best_step": 1200, "seconds_to_best": 3.0}
    fits = [{"variant": name, **fit} for name in ("a", "b")]
    tasks = {task: {"state_action": fits, "action": fits} for task in ("walker", "maze")}
    text = report.markdown({"denoisers": {"tasks": tasks, **_RUN}})
    section = text[text.index("## Other denoisers") :].splitlines()
    rows = [line.replace("\\|", "") for line in section if line.startswith("|")]
    assert len(rows) == 4
    assert {row.count("|") for row in rows} == {7}
    assert rows[2] == "| a | 1.25 |" + " 0.5000 (1,200, 3.0 s) |" * 4


def test_a_part_that_did_not_run_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text(json.dumps({"parts": {"steps": _STEPS}}))
    arguments = ["--quick", "--parts", "inference", "--threads", "1", "--blocks", "2"]
    speed.main([*arguments, "--results", str(tmp_path)])
    parts = json.loads((tmp_path / "speed.json").read_text())["parts"]
    assert list(parts) == ["steps", "inference"]
    assert parts["steps"] == _STEPS
    assert parts["inference"]["run"]["blocks"] == 2
    assert str(tmp_path) not in json.dumps(parts)
    assert "## Inference" in (tmp_path / "speed.md").read_text()


@pytest.mark.slow
def test_everything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speed.main(["--quick", "--threads", "1", "--results", str(tmp_path)])
    parts = json.loads((tmp_path / "speed.json").read_text())["parts"]
    assert list(parts) == list(speed.PARTS)
    assert {row["contestant"] for row in parts["steps"]["rows"]} >= {"imitation's BC"}
    assert parts["critic"]["tasks"]["walker"]["time_of_release_to_ours"]["n"] == 24
    assert parts["growth"]["rows"][0]["transitions"] == 1_000
    assert (tmp_path / "speed" / "release-walker.json").is_file()
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    assert (tmp_path / "speed-denoisers.png").stat().st_size > 10_000
    assert "## Growth" in capsys.readouterr().out


def test_the_readme_shows_the_targets_as_they_were_measured() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert speed.with_targets(text, speed.RESULTS) == text
    rows = [line for line in text.splitlines() if line.endswith("| met |")]
    assert rows


def test_a_readme_without_marks_for_the_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the lines <!-- speed --> and <!-- /speed -->"):
        speed.with_targets("# Title", speed.RESULTS)
