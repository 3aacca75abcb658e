"""The command ``sb3-diffbc``."""

from __future__ import annotations

import json
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from toys import LINE_ENV_ID, LineEnv, Payload, weights

from sb3_diffbc import (
    DiffusionBC,
    DiffusionCritic,
    label_noise,
    load_demonstrations,
    load_policy,
)
from sb3_diffbc.cli.__main__ import main
from sb3_diffbc.cli.options import read_yaml, write_yaml
from sb3_diffbc.cli.train import Train


class KeyedLineEnv(LineEnv):
    """The line, whose observations come by key."""

    observation_space = gym.spaces.Dict(
        {key: gym.spaces.Box(-100, 100, (1,), np.float32) for key in ("position", "steps")}
    )

    def _observation(self) -> Any:
        position, steps = super()._observation()
        return {"position": np.array([position]), "steps": np.array([steps])}


KEYED_ENV_ID = "sb3_diffbc_tests/KeyedLine-v0"
if KEYED_ENV_ID not in gym.registry:
    gym.register(KEYED_ENV_ID, entry_point=KeyedLineEnv)

QUICK = (
    *("--critic-kwargs", "{n_steps: 20, width: 16, depth: 1}"),
    *("--n-eval-episodes", "2", "--verbose", "0", "--no-progress-bar", "--seed", "1"),
)


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    """Demonstrations of the line, which its expert solves."""
    rng = np.random.default_rng(0)
    obs = rng.uniform(-3, 3, (200, 2)).astype(np.float32)
    ends = np.arange(200) % 10 == 9
    np.savez(tmp_path / "demos.npz", obs=obs, acts=np.tanh(-obs[:, :1]), dones=ends)
    return tmp_path / "demos.npz"


class OwnExtractor(FlattenExtractor):
    """Code that only its user has."""


class OwnPolicy(ActorCriticPolicy):
    """Another."""


@given(st.recursive(st.text() | st.floats(allow_nan=False) | st.integers(), st.lists))
def test_yaml_is_read_as_it_was_written(content: Any) -> None:
    assert read_yaml(write_yaml(content)) == content


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-2.5E3", -2500.0), ("1e3_maze.npz", "1e3_maze.npz"), ("'1e4'", "1e4")],
)
def test_numbers_in_yaml(text: str, value: Any) -> None:
    assert read_yaml(text) == value


def train(demos: Path, folder: Path, *arguments: str) -> int:
    return main(
        [
            *("train", "--demos", str(demos), "--env", LINE_ENV_ID, "--output", str(folder)),
            *(*QUICK, *arguments),
        ]
    )


@pytest.fixture
def run(demos: Path, tmp_path: Path) -> Path:
    """A finished run of 30 updates."""
    assert train(demos, tmp_path / "run", "--n-batches", "30") == 0
    return tmp_path / "run"


class TestTrain:
    def test_a_run_keeps_policy_settings_scores_and_logs(self, run: Path) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["settings"]["n_batches"] == 30
        assert config["settings"]["critic_kwargs"] == {"n_steps": 20, "width": 16, "depth": 1}
        assert {"torch", "imitation", "sb3-diffbc", "python"} <= config["versions"].keys()
        scores = json.loads((run / "results.json").read_text())
        assert len(scores["returns"]) == 2
        assert scores["seeds"] == [0, 1]
        assert list((run / "tensorboard").glob("events.*"))
        trainer = DiffusionBC.load(run / "trainer.safetensors", verbose=0)
        assert trainer.n_updates == 30
        assert th.equal(weights(trainer.policy), weights(load_policy(run / "policy.safetensors")))

    def test_it_is_the_training_of_the_same_arguments(self, run: Path, demos: Path) -> None:
        trainer = DiffusionBC(
            demonstrations=demos,
            env=LINE_ENV_ID,
            seed=1,
            critic_kwargs={"n_steps": 20, "width": 16, "depth": 1},
            verbose=0,
        )
        trainer.train(n_batches=30, progress_bar=False)
        assert th.equal(weights(trainer.policy), weights(load_policy(run / "policy.safetensors")))

    def test_settings_come_from_a_file_and_options_take_precedence(
        self, demos: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "settings.yaml").write_text("dm_coef: 0\nbc_loss: mse\nn_batches: 5\n")
        arguments = ("--config", str(tmp_path / "settings.yaml"), "--n-batches", "7")
        assert train(demos, tmp_path / "run", *arguments) == 0
        trainer = DiffusionBC.load(tmp_path / "run" / "trainer.safetensors", verbose=0)
        assert (trainer.dm_coef, trainer.bc_loss, trainer.n_updates) == (0, "mse", 7)

    def test_a_run_s_own_config_repeats_it(self, run: Path, tmp_path: Path) -> None:
        again = ["train", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "b")]
        assert main(again) == 0
        policies = [load_policy(f / "policy.safetensors") for f in (run, tmp_path / "b")]
        assert th.equal(*map(weights, policies))

    def test_observations_of_a_robomimic_file_are_chosen_and_stay_chosen(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        h5py = pytest.importorskip("h5py")
        rng = np.random.default_rng(0)
        with h5py.File(tmp_path / "low_dim.hdf5", "w") as file:
            for key in ("position", "steps", "unused"):
                file[f"data/demo_0/obs/{key}"] = rng.normal(size=(50, 1))
            file["data/demo_0/actions"] = rng.uniform(-1, 1, size=(50, 1))
        source = tmp_path / "low_dim.hdf5"
        assert train(source, tmp_path / "all") == 2
        chosen = ("--obs-keys", "[position, steps]")
        assert train(source, tmp_path / "run", "--n-batches", "5", *chosen) == 0
        assert main(["train", "--resume", str(tmp_path / "run"), "--n-batches", "9"]) == 0
        capsys.readouterr()
        assert main(["demos", "check", str(source), *chosen, "--env", LINE_ENV_ID]) == 0
        assert main(["demos", "describe", str(source)]) == 0
        assert "unused: float32, shape (1,)" in capsys.readouterr().out

    @pytest.mark.parametrize("length", [("--n-batches", "50"), ("--n-epochs", "8")])
    def test_an_interrupted_run_goes_on_to_the_same_end(
        self,
        demos: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        length: tuple[str, str],
    ) -> None:
        assert train(demos, tmp_path / "whole", *length) == 0
        every_update = ("--checkpoint-minutes", "1e-9", *length)
        original = DiffusionBC.save

        def save(self: DiffusionBC, path: Any) -> Path:
            saved = original(self, path)
            if self.n_updates >= 20:
                raise KeyboardInterrupt
            return saved

        with monkeypatch.context() as patch:
            patch.setattr(DiffusionBC, "save", save)
            assert train(demos, tmp_path / "cut", *every_update) == 130
        assert not (tmp_path / "cut" / "policy.safetensors").exists()
        assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
        policies = [load_policy(tmp_path / n / "policy.safetensors") for n in ("whole", "cut")]
        assert th.equal(*map(weights, policies))

    def test_a_finished_run_can_be_made_longer(
        self, run: Path, demos: Path, tmp_path: Path
    ) -> None:
        assert main(["train", "--resume", str(run), "--n-batches", "50"]) == 0
        assert train(demos, tmp_path / "whole", "--n-batches", "50") == 0
        policies = [load_policy(f / "policy.safetensors") for f in (run, tmp_path / "whole")]
        assert th.equal(*map(weights, policies))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--dm-coef", "-1"), "dm_coef"),
            (("--n-batches", "0"), "n_batches"),
            (("--policy", "NoSuchPolicy"), "policy"),
            (("--n-eval-episodes", "-1"), "--n-eval-episodes: found -1"),
            (("--optimizer-kwargs", "{lr: -1e-4}"), "Invalid learning rate: -0.0001"),
        ],
    )
    def test_wrong_values_leave_no_run_behind(
        self,
        demos: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: tuple[str, str],
        message: str,
    ) -> None:
        assert train(demos, tmp_path / "run", *arguments) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_a_run_is_not_overwritten_nor_changed(
        self, run: Path, demos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert train(demos, run, "--n-batches", "1") == 2
        assert "--resume goes on with it" in capsys.readouterr().err
        for name, value in (("dm_coef", "5"), ("learning_rate", "0.5"), ("policy", "MlpPolicy")):
            option = f"--{name.replace('_', '-')}"
            assert main(["train", "--resume", str(run), option, value]) == 2
            assert f"{name} must be as in" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("dm_cof: 1", "found dm_cof, expected of"),
            ("[1, 2]", "expected settings by name"),
            ("a: [", "found no YAML"),
            ("!!python/object/apply:os.system ['true']", "found no YAML"),
            ("env: some_module:Env-v0", "with a module"),
        ],
    )
    def test_settings_files_are_checked_and_run_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
    ) -> None:
        (tmp_path / "settings.yaml").write_text(content)
        assert main(["train", "--config", str(tmp_path / "settings.yaml"), "--demos", "maze"]) == 2
        assert message in capsys.readouterr().err

    def test_every_argument_that_a_checkpoint_keeps_is_an_option(self) -> None:
        assert DiffusionBC.saved_arguments <= Train.__dataclass_fields__.keys()

    def test_weights_and_biases_get_the_log(
        self, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logged: dict[str, Any] = {}
        wandb = types.ModuleType("wandb")
        wandb.init = lambda **kwargs: logged.update(kwargs)  # type: ignore[attr-defined]
        wandb.log = lambda values, **_: logged.update(values)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        arguments = ("--n-batches", "5", "--wandb-project", "line")
        assert train(demos, tmp_path / "run", *arguments) == 0
        assert (logged["project"], logged["name"]) == ("line", "run")
        assert "bc/loss" in logged


class TestPolicies:
    def test_evaluate_plays_a_run_s_policy_in_its_environment(
        self, run: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "scores.json"
        arguments = ["--n-episodes", "3", "--seed", "7", "--output", str(path)]
        assert main(["evaluate", str(run), *arguments]) == 0
        from_run = json.loads(path.read_text())
        assert from_run["seeds"] == [7, 8, 9]
        for name in ("policy.safetensors", "trainer.safetensors"):
            file = ["evaluate", str(run / name), "--env", LINE_ENV_ID, *arguments]
            assert main(file) == 0
            assert json.loads(path.read_text())["returns"] == from_run["returns"]

    def test_a_policy_without_an_environment_asks_for_one(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["evaluate", str(run / "policy.safetensors")]) == 2
        assert "--env is missing" in capsys.readouterr().err
        (run / "other.safetensors").write_bytes(b"no checkpoint")
        assert main(["evaluate", str(run / "other.safetensors"), "--env", LINE_ENV_ID]) == 2
        assert "expected a checkpoint" in capsys.readouterr().err
        successes = ["--env", "Pendulum-v1", "--successes-only", "--output", str(run / "d.npz")]
        PPO("MlpPolicy", "Pendulum-v1", device="cpu").save(run / "ppo.zip")
        assert main(["record", str(run / "ppo.zip"), *successes]) == 2
        assert "does not report is_success" in capsys.readouterr().err

    def test_record_writes_what_load_demonstrations_reads(self, run: Path, tmp_path: Path) -> None:
        path = tmp_path / "recorded.npz"
        record = ["record", str(run), "--n-episodes", "4", "--seed", "3", "--output", str(path)]
        assert main(record) == 0
        transitions = load_demonstrations(path)
        env = gym.make(LINE_ENV_ID)
        policy = load_policy(run / "policy.safetensors")
        observation, _ = env.reset(seed=3)
        np.testing.assert_array_equal(transitions.obs[0], observation)
        action = policy.predict(observation, deterministic=True)[0]
        np.testing.assert_array_equal(transitions.acts[0], action)
        np.testing.assert_array_equal(transitions.next_obs[0], env.step(action)[0])
        assert main(record) == 2  # it is there already

    def test_observations_by_key_are_recorded_as_robomimic_does(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("h5py")
        model = PPO("MultiInputPolicy", KEYED_ENV_ID, seed=0, device="cpu")
        model.save(tmp_path / "model.zip")
        arguments = ["record", str(tmp_path / "model.zip"), "--env", KEYED_ENV_ID]
        assert main([*arguments, "--output", str(tmp_path / "d.npz")]) == 2
        assert "suffix .hdf5" in capsys.readouterr().err
        assert main([*arguments, "--n-episodes", "3", "--output", str(tmp_path / "d.hdf5")]) == 0
        transitions = load_demonstrations(tmp_path / "d.hdf5")
        assert set(transitions.obs.keys()) == {"position", "steps"}
        assert transitions.dones.sum() == 3
        trainer = DiffusionBC(
            demonstrations=transitions, env=KEYED_ENV_ID, dm_coef=0, batch_size=4, verbose=0
        )
        trainer.train(n_batches=2)

    @pytest.mark.parametrize(
        ("algorithm", "kwargs"),
        [
            (PPO, {"policy_kwargs": {"net_arch": [8, 8]}}),
            (PPO, {"policy_kwargs": {"activation_fn": th.nn.ReLU}, "use_sde": True}),
            (PPO, {"policy_kwargs": {"log_std_init": np.float32(-1)}}),
            (PPO, {"policy_kwargs": {"features_extractor_class": FlattenExtractor}}),
            (SAC, {"policy_kwargs": {"net_arch": [8], "activation_fn": th.nn.Tanh}}),
            (A2C, {}),  # whose policy_kwargs name an optimiser
        ],
        ids=["net", "activation", "numpy", "extractor", "sac", "a2c"],
    )
    def test_an_sb3_model_s_file_acts_as_sb3_loads_it(
        self, algorithm: Any, kwargs: dict[str, Any], tmp_path: Path
    ) -> None:
        model = algorithm("MlpPolicy", LINE_ENV_ID, seed=0, device="cpu", **kwargs)
        model.save(tmp_path / "model.zip")
        arguments = [
            *("record", str(tmp_path / "model.zip"), "--algorithm", algorithm.__name__),
            *("--env", LINE_ENV_ID, "--n-episodes", "1", "--output", str(tmp_path / "d.npz")),
        ]
        assert main(arguments) == 0
        transitions = load_demonstrations(tmp_path / "d.npz")
        actions, _ = model.predict(transitions.obs, deterministic=True)
        np.testing.assert_allclose(transitions.acts, actions, atol=1e-6)

    def test_an_sb3_model_that_takes_code_or_another_algorithm_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["evaluate", str(tmp_path / "model.zip"), "--env", LINE_ENV_ID]
        kwargs = {"features_extractor_class": OwnExtractor}
        for policy, own in (("MlpPolicy", kwargs), (OwnPolicy, None)):
            PPO(policy, LINE_ENV_ID, policy_kwargs=own, device="cpu").save(tmp_path / "model.zip")
            assert main(arguments) == 2
            assert "test_cli" in capsys.readouterr().err
        for maker, algorithm in ((PPO, "DQN"), (PPO, "SAC"), (SAC, "PPO"), (SAC, "TD3")):
            maker("MlpPolicy", LINE_ENV_ID, device="cpu").save(tmp_path / "model.zip")
            assert main([*arguments, "--algorithm", algorithm]) == 2
            assert f"is no {algorithm} for this environment" in capsys.readouterr().err

    def test_pickles_in_an_sb3_model_s_file_are_not_run(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bomb = Payload(tmp_path / "ran")
        with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
            with archive.open("policy.pth", "w") as file:
                th.save({"a": bomb}, file)
            archive.writestr("data", pickle.dumps(bomb))
        assert main(["evaluate", str(tmp_path / "model.zip"), "--env", LINE_ENV_ID]) == 2
        assert not (tmp_path / "ran").exists()
        assert "model.zip" in capsys.readouterr().err

    def test_export_writes_a_policy_that_acts_the_same(self, run: Path, tmp_path: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
        assert main(["export", str(run), "--output", str(tmp_path / "p.onnx")]) == 0
        session = onnxruntime.InferenceSession(tmp_path / "p.onnx")
        obs = np.array([[0.5, 2.0], [-0.25, 1.0]], dtype=np.float32)
        found = session.run(None, {session.get_inputs()[0].name: obs})[0]
        policy = load_policy(run / "policy.safetensors")
        np.testing.assert_allclose(found, policy.predict(obs, deterministic=True)[0], atol=1e-5)


class TestDemos:
    def test_describe_says_what_is_in_it(
        self, demos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["demos", "describe", str(demos)]) == 0
        out = capsys.readouterr().out
        assert "200 transitions in 20 trajectories of 10 to 10 steps" in out
        assert "observations: float32, shape (2,)" in out
        assert "actions: float32, shape (1,)" in out

    def test_check_compares_with_an_environment(
        self, demos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["demos", "check", str(demos), "--env", LINE_ENV_ID]) == 0
        assert f"are sound and fit {LINE_ENV_ID}" in capsys.readouterr().out
        assert main(["demos", "check", str(demos), "--env", "sb3_diffbc/Maze-v0"]) == 2
        assert "obs" in capsys.readouterr().err


class TestScore:
    @pytest.fixture
    def score(self, demos: Path) -> list[str]:
        """The command in sizes that only show that it runs."""
        arguments = ["--method", "residual", "--n-updates", "20", "--no-progress-bar"]
        return ["score", "--demos", str(demos), "--env", LINE_ENV_ID, *arguments]

    def test_the_worst_are_listed_and_drawn_and_the_best_written(
        self, score: list[str], demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        plot, out = tmp_path / "new" / "scores.png", tmp_path / "new" / "kept.npz"
        arguments = ["--plot", str(plot), "--keep", "0.9", "--output", str(out)]
        assert main([*score, "--n-worst", "3", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "200 transitions in 20 trajectories" in lines[0]
        [heading] = [place for place, line in enumerate(lines) if "mean score" in line][:1]
        worst = [line.split() for line in lines[heading + 1 : heading + 4]]
        assert [row[1] for row in worst] == ["10"] * 3
        assert lines[heading + 4] == ""
        assert plot.read_bytes().startswith(b"\x89PNG")
        kept, every = load_demonstrations(out), load_demonstrations(demos)
        assert len(kept) == 180
        rows = [np.flatnonzero((every.obs == obs).all(axis=1)).item() for obs in kept.obs]
        assert np.array_equal(every.acts[rows], kept.acts)
        assert main([*score, *arguments]) == 2  # it is there already

    def test_by_default_as_many_are_left_out_as_look_wrong(
        self,
        score: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        flags = np.arange(200) % 4 == 0
        monkeypatch.setattr(label_noise, "bad_labels", lambda *_: (flags, False))
        assert main([*score, "--output", str(tmp_path / "kept.npz")]) == 0
        assert "about 25.0% of the actions look wrong" in capsys.readouterr().out
        assert len(load_demonstrations(tmp_path / "kept.npz")) == 150

    def test_whole_trajectories_may_be_left_out(self, score: list[str], tmp_path: Path) -> None:
        out = tmp_path / "kept.npz"
        arguments = ["--keep", "0.5", "--by", "trajectories", "--output", str(out)]
        assert main([*score, *arguments]) == 0
        kept = load_demonstrations(out)
        assert np.array_equal(np.flatnonzero(kept.dones), np.arange(9, 100, 10))

    def test_a_critic_of_trusted_demonstrations_scores(
        self, score: list[str], demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        spaces = LineEnv.observation_space, LineEnv.action_space
        critic = DiffusionCritic(*spaces, n_steps=5, width=8, depth=1, seed=0)
        critic.fit(demos, progress_bar=False)
        path = critic.save(tmp_path / "critic.safetensors")
        assert main([*score, "--critic", str(path)]) == 0
        every = load_demonstrations(demos)
        is_low = critic.score(every.obs, every.acts) < 0.2
        assert f"{is_low.float().mean():.1%} below 0.2" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--keep", "0.9"], "--keep needs --output"),
            (["--by", "trajectories", "--output", "kept.npz"], "--by trajectories needs --keep"),
            (["--method", "critic", "--output", "kept.npz"], "--output needs --keep"),
            (["--keep", "2", "--out", "kept.npz"], "--keep: found 2.0"),
            (["--n-worst", "-1"], "--n-worst: found -1"),
            (["--threshold", "0"], "threshold"),
        ],
    )
    def test_wrong_arguments_are_refused(
        self,
        score: list[str],
        arguments: list[str],
        message: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert main([*score, *arguments]) == 2
        assert message in capsys.readouterr().err
