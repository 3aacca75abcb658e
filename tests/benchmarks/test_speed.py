"""The measurement of speed: its arithmetic, its stand-in for the release, and that it runs."""

import gc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch as th

from benchmarks.speed import page
from benchmarks.speed.against_release import held_out_loss, split
from benchmarks.speed.command import Speed
from benchmarks.speed.data_size import PeakMemory, anonymous_memory, random_transitions
from benchmarks.speed.release import (
    CriticTraining,
    PolicyTraining,
    ReleaseNetwork,
    sigmoid_betas,
)
from benchmarks.speed.settings import spaces_of
from benchmarks.speed.timing import in_turns, relative_times, timed
from sb3_diffbc import DiffusionCritic
from sb3_diffbc.critic import NoiseSchedule


@pytest.fixture
def settings(tmp_path: Path) -> Speed:
    """Tiny sizes and a folder that takes the place of the committed results."""
    found = Speed(results=tmp_path, quick=True, threads=1)
    found.shrink()
    return found


class TestTiming:
    def test_contestants_alternate_and_the_first_one_changes(self) -> None:
        seen: list[str] = []
        blocks = {name: timed(lambda name=name: seen.append(name), 2) for name in "ab"}
        seconds = in_turns(blocks, 2)
        assert "".join(seen) == "ab" + "ab" + "ba"  # a block of each to warm up
        assert {name: values.shape for name, values in seconds.items()} == {"a": (2,), "b": (2,)}

    def test_ratios_are_those_of_the_same_round(self) -> None:
        seconds = {"ours": np.array([1.0, 2.0, 3.0]), "theirs": np.array([2.0, 2.0, 12.0])}
        ours, theirs = relative_times("updates", "batch 8", seconds, "theirs", {"ours": "fast"})
        assert (ours.ratio, ours.low, ours.high, ours.rounds) == (0.5, 0.25, 1.0, 3)
        assert (ours.milliseconds, ours.relative_to, ours.remark) == (2000.0, "theirs", "fast")
        assert (theirs.ratio, theirs.low, theirs.high, theirs.remark) == (1.0, 1.0, 1.0, "")


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

    def test_both_of_its_trainings_learn(self, settings: Speed) -> None:
        th.manual_seed(0)
        pairs = split(settings.demonstrations("maze"))
        training = CriticTraining(th.cat(pairs.train_codes, dim=-1), width=32)
        before = held_out_loss(training.network, pairs)
        training.run(200)
        assert held_out_loss(training.network, pairs) < 0.9 * before
        obs, acts = pairs.train_codes
        policy = PolicyTraining(obs, acts, training.network)
        error = (policy.policy(obs) - acts).square().mean()
        policy.run(200)
        assert (policy.policy(obs) - acts).square().mean() < error / 2


class TestHeldOutLoss:
    def test_is_that_of_the_same_noise_for_the_critic_and_the_release(
        self, settings: Speed
    ) -> None:
        pairs = split(settings.demonstrations("maze"))
        network = ReleaseNetwork(pairs.held_out_pairs.shape[1], width=8)
        critic = DiffusionCritic(**spaces_of(pairs.train), n_steps=2, seed=1, device="cpu")
        critic.fit(pairs.train, progress_bar=False)
        for out in (network.out, critic.denoiser.out):
            th.nn.init.zeros_(out.weight)
            th.nn.init.zeros_(out.bias)
        # What predicts no noise at all is as wrong as the noise is large.
        expected = float(th.cat([noise.epsilon for noise in pairs.noise]).square().mean())
        assert held_out_loss(network, pairs) == pytest.approx(expected, rel=1e-5)
        assert held_out_loss(critic, pairs) == pytest.approx(expected, rel=1e-5)


class TestDataSize:
    def test_transitions_are_the_same_in_memory_and_on_disk(self, tmp_path: Path) -> None:
        mapped, held = (random_transitions(7, folder) for folder in (tmp_path, None))
        assert isinstance(mapped.obs, np.memmap)
        assert mapped.obs.dtype == held.acts.dtype == np.float32
        np.testing.assert_array_equal(mapped.acts, held.acts)

    @pytest.mark.skipif(np.isnan(anonymous_memory()), reason="there is no /proc")
    def test_the_peak_is_that_of_arrays_even_if_they_are_gone(self) -> None:
        gc.collect()  # what others left would be freed meanwhile
        with PeakMemory() as peak:
            array = np.ones(5 * 10**6)  # too large for memory that was freed before
            for _ in range(20):
                array.sort()  # long enough to be seen
            del array
        assert peak.bytes == pytest.approx(40e6, rel=0.3)


class TestPage:
    @pytest.fixture(autouse=True)
    def _tabulate(self) -> None:
        pytest.importorskip("tabulate")

    @pytest.fixture
    def measurements(self) -> pd.DataFrame:
        rows = [
            row
            for batch in (128, 1024)
            for row in relative_times(
                "updates",
                f"batch {batch}",
                {"imitation's BC": np.ones(3), "DiffusionBC": np.array([0.7, 0.8, 0.9])},
                "imitation's BC",
            )
        ]
        return pd.DataFrame(rows).assign(run="a processor")

    def test_says_which_aims_are_met(self, measurements: pd.DataFrame) -> None:
        lines = page.limits_table(measurements).splitlines()
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
        assert [row[1:] for row in cells] == [
            ["batch 128", "imitation's BC", "≤ 1", "0.8 (0.7 to 0.9)", "met"],
            ["batch 1024", "imitation's BC", "≤ 0.6", "0.8 (0.7 to 0.9)", "**not met**"],
        ]


def test_a_part_that_was_not_asked_for_keeps_its_rows(settings: Speed) -> None:
    pytest.importorskip("tabulate")
    old = {"part": "updates", "case": "batch 128", "what": "DiffusionBC", "relative_to": "BC"}
    old |= {"milliseconds": 1.0, "ratio": 0.5, "low": 0.4, "high": 0.6, "rounds": 3, "run": "then"}
    pd.DataFrame([old]).to_csv(settings.results / "speed.csv", index=False)
    for _ in range(2):
        Speed(parts=("actions",), results=settings.results, quick=True, threads=1).run()
    found = pd.read_csv(settings.results / "speed.csv")
    assert found["part"].tolist() == ["updates"] + 4 * ["actions"]
    assert found["run"][0] == "then"
    assert str(settings.results) not in found.to_csv()
    titles = [
        line for line in (settings.results / "speed.md").read_text().splitlines() if "##" in line
    ]
    assert titles == ["## Updates", "## Actions"]


@pytest.mark.slow
def test_everything_runs(tmp_path: Path) -> None:
    pytest.importorskip("tabulate")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    Speed(results=tmp_path, quick=True, threads=1).run()
    found = pd.read_csv(tmp_path / "speed.csv")
    assert found.groupby("part").size().to_dict() == {
        **{"updates": 4, "actions": 4, "onnx": 2, "monitor": 2, "scores": 3},
        **{"critic": 4, "training": 2, "data": 4},
    }
    assert (found["low"] <= found["ratio"]).all()
    assert (found["ratio"] <= found["high"]).all()
    assert (tmp_path / "speed.md").read_text().count("\n## ") == 8
