"""The monitor: its threshold, its windows over episodes and resets, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import toys
from gymnasium import spaces
from hypothesis import given, settings
from imitation.data.types import Trajectory
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import CRITIC_KWARGS, MAPPING, LineEnv, trainer, transitions

from sb3_diffbc import CriticMonitor, DiffusionCritic, hold_out
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.monitor import Watch, conformal_threshold

SPACES = LineEnv.observation_space, LineEnv.action_space
LENGTH = 5
demonstrations = toys.near_the_middle


HELD_OUT = demonstrations(200, seed=1)


@pytest.fixture(scope="module")
def critic() -> DiffusionCritic:
    return toys.critic_of_the_middle()


@pytest.fixture(scope="module")
def monitor(critic: DiffusionCritic) -> CriticMonitor:
    return CriticMonitor(critic, HELD_OUT, false_alarm_rate=0.1, window=3)


# --- the threshold ------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=40),
    rate=st.floats(0.01, 0.99),
)
def test_of_exchangeable_values_a_share_of_at_most_the_rate_is_above(
    values: list[float], rate: float
) -> None:
    # Of n + 1 values in random order, each is as likely to be the one that comes last.
    others = [values[:i] + values[i + 1 :] for i in range(len(values))]
    try:
        thresholds = [conformal_threshold(rest, rate) for rest in others]
    except ValueError:
        assert len(values) * rate < 1
        return
    n_above = sum(v > threshold for v, threshold in zip(values, thresholds, strict=True))
    assert n_above <= len(values) * rate + 1e-6
    if len(set(values)) == len(values):
        assert n_above > len(values) * rate - 1  # no looser than it has to be


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.1, 9), (0.07, 14), (1 / 3, 2)])
def test_a_rate_needs_so_many_trajectories(rate: float, needed: int) -> None:
    assert conformal_threshold(np.arange(needed), rate) == needed - 1
    with pytest.raises(ValueError, match=f"needs at least {needed} held-out .* found {needed - 1}"):
        conformal_threshold(np.arange(needed - 1), rate)


def test_the_experts_episodes_raise_alarms_at_the_rate(critic: DiffusionCritic) -> None:
    shares = []
    for seed in range(20):
        monitor = CriticMonitor(
            critic, demonstrations(95, 100 + seed), false_alarm_rate=0.1, window=3
        )
        fresh = demonstrations(250, 200 + seed)
        watch = Watch(monitor, 50)
        alarms = [
            watch.step(fresh.obs[step::LENGTH], fresh.acts[step::LENGTH]).alarm
            for step in range(LENGTH)
        ]
        shares.append(np.any(alarms, axis=0).mean())
    # 0.1 for 19 trajectories, as 20 times 0.1 is whole; the standard error is 0.015.
    assert 0.05 < np.mean(shares) < 0.15


def test_single_pairs_are_unfamiliar_where_the_expert_was_not(monitor: CriticMonitor) -> None:
    obs, acts = HELD_OUT.obs, HELD_OUT.acts
    assert monitor.unfamiliar(obs, acts).dtype == bool
    assert monitor.unfamiliar(obs, acts).mean() == pytest.approx(0.1, abs=0.006)
    assert monitor.unfamiliar(obs + np.float32([9, 0]), acts).mean() > 0.9


# --- episodes -----------------------------------------------------------------------------------


def played(venv: Any, n_steps: int = 14, seed: int = 3) -> list[Any]:
    """The infos of random steps, and the observations and actions that they are about."""
    rng = np.random.default_rng(seed)
    venv.seed(seed)
    obs, steps = venv.reset(), []
    for _ in range(n_steps):
        acts = rng.uniform(-1, 1, (venv.num_envs, 1)).astype(np.float32)
        following, _, dones, infos = venv.step(acts)
        steps.append((obs, acts, dones, infos))
        obs = following
    return steps


def test_a_vec_env_says_what_a_plain_loop_over_its_episodes_says(monitor: CriticMonitor) -> None:
    called: list[tuple[int, int, float]] = []
    steps = played(monitor.wrap(DummyVecEnv([LineEnv] * 3), lambda *args: called.append(args)))
    expected = []
    for env in range(3):
        monitor.reset()
        n_episodes, step, has_alarmed = 0, 0, False
        for obs, acts, dones, infos in steps:
            reading = monitor.step(obs[env], acts[env])
            assert infos[env]["critic_score"] == pytest.approx(reading.score, rel=1e-4)
            assert infos[env]["critic_alarm"] is reading.alarm
            assert np.isnan(reading.mean) == (step < 2)
            if reading.alarm and not has_alarmed:
                has_alarmed = True
                expected.append((env, step, pytest.approx(reading.mean, rel=1e-4)))
            step += 1
            if dones[env]:
                # Where the environment was reset already, the last pair is judged, not the next.
                assert infos[env]["terminal_observation"] is not None
                monitor.reset()
                n_episodes, step, has_alarmed = n_episodes + 1, 0, False
        assert n_episodes > 1
    assert sorted(called, key=lambda call: call[0]) == expected
    assert expected


def test_a_mean_is_that_of_the_last_steps(monitor: CriticMonitor) -> None:
    obs, acts = HELD_OUT.obs[:8], HELD_OUT.acts[:8]
    monitor.reset()
    readings = [monitor.step(*pair) for pair in zip(obs, acts, strict=True)]
    for i in range(2, 8):
        assert readings[i].mean == pytest.approx(monitor.scores(obs, acts)[i - 2 : i + 1].mean())
        assert readings[i].alarm is (readings[i].mean > monitor.threshold)


def test_observations_are_judged_before_they_are_normalised(monitor: CriticMonitor) -> None:
    plain = played(monitor.wrap(DummyVecEnv([LineEnv] * 2)))
    normalised = played(monitor.wrap(VecNormalize(DummyVecEnv([LineEnv] * 2))))
    for (*_, one), (*_, other) in zip(plain, normalised, strict=True):
        assert [i["critic_score"] for i in one] == [i["critic_score"] for i in other]
    assert not np.allclose(plain[5][0], normalised[5][0])


def test_observations_of_many_parts_are_judged_in_both_ways() -> None:
    pairs = dataclasses.replace(transitions(MAPPING, SPACES[1]), dones=np.ones(64, bool))
    monitor = CriticMonitor(toys.critic(MAPPING, SPACES[1], data=pairs), pairs, window=1)
    venv = monitor.wrap(DummyVecEnv([lambda: toys.AnyEnv(MAPPING, SPACES[1])] * 2))
    obs: Any = venv.reset()
    *_, infos = venv.step(np.zeros((2, 1), np.float32))
    first = {key: np.asarray(part[0]) for key, part in obs.items()}
    assert infos[0]["critic_score"] == pytest.approx(
        monitor.step(first, np.zeros(1, np.float32)).score, rel=1e-4
    )


# --- trajectories -------------------------------------------------------------------------------


def test_what_is_held_out_keeps_its_ends(critic: DiffusionCritic) -> None:
    lengths = [3, 1, 4, 5, 2]
    data = demonstrations(15)
    dones = np.zeros(15, dtype=bool)
    dones[np.cumsum(lengths)[:-1] - 1] = True  # the last one is cut off
    left, held_out = hold_out(dataclasses.replace(data, dones=dones), 0.4)
    assert len(left) + len(held_out) == 15
    assert set(lengths_of(held_out.dones)) < set(lengths)
    parts = [
        Trajectory(obs=data.obs[i : i + 4], acts=data.acts[i : i + 3], infos=None, terminal=False)
        for i in range(11)
    ]
    _, cut = hold_out(parts, 0.5, seed=1)
    assert list(lengths_of(cut.dones)) == [3] * 6
    options: dict[str, Any] = {"false_alarm_rate": 0.2, "window": 2}
    assert CriticMonitor(critic, cut, **options).n_trajectories == 6
    assert CriticMonitor(critic, parts, **options).n_trajectories == 11
    with pytest.raises(ValueError, match=r"fraction: .* found 1\.5"):
        hold_out(data, 1.5)


def test_what_a_trainer_holds_out_calibrates_its_critic() -> None:
    algorithm = trainer(
        *SPACES,
        demonstrations=demonstrations(200),
        validation_fraction=0.25,
        critic_models="state_action",
    )
    toys.train(algorithm, n_batches=2)
    assert algorithm.critic is not None
    monitor = CriticMonitor(algorithm.critic, algorithm.held_out, false_alarm_rate=0.1, window=2)
    assert monitor.n_trajectories == 10


# --- what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"false_alarm_rate": 0}, ValueError, "false_alarm_rate: .* found 0"),
        ({"false_alarm_rate": 0.01}, ValueError, "at least 99 held-out trajectories .* found 40"),
        ({"window": 0}, ValueError, "window: .* found 0"),
        ({"window": 6}, ValueError, "window: found 6, expected less"),
        ({"critic": None}, TypeError, "critic: .* found None"),
        ({"demonstrations": transitions(*SPACES)}, ValueError, "at least 19 .*dones.* found 1"),
        (
            {"demonstrations": dataclasses.replace(HELD_OUT, acts=HELD_OUT.acts * 3)},
            ValueError,
            "acts leave the bounds",
        ),
    ],
)
def test_arguments_are_checked(
    critic: DiffusionCritic, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CriticMonitor(**{"critic": critic, "demonstrations": HELD_OUT, "window": 3, **arguments})


def test_critics_without_states_are_refused() -> None:
    conditional = DiffusionCritic(*SPACES, models="action", seed=0, device="cpu", **CRITIC_KWARGS)
    conditional.fit(demonstrations(200), progress_bar=False)
    with pytest.raises(ValueError, match=r"critic models 'action': expected 'state_action'"):
        CriticMonitor(conditional, HELD_OUT)


def test_pairs_without_numbers_are_no_silence(monitor: CriticMonitor) -> None:
    with pytest.raises(ValueError, match=r"obs.* NaN"):
        monitor.step(np.full(2, np.nan, np.float32), np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="acts: found 2 rows, expected 3"):
        Watch(monitor, 3).step(HELD_OUT.obs[:2], HELD_OUT.acts[:2])


def test_other_environments_are_refused(monitor: CriticMonitor) -> None:
    class Other(LineEnv):
        action_space = spaces.Box(-2, 2, (1,), np.float32)

    with pytest.raises(ValueError, match=r"critic\.action_space is .*: expected Box\(-2"):
        monitor.wrap(DummyVecEnv([Other]))
    not_a_venv: Any = LineEnv()
    with pytest.raises(TypeError, match=r"venv: .*VecEnv"):
        monitor.wrap(not_a_venv)
    with pytest.raises(RuntimeError, match="expected reset"):
        monitor.wrap(DummyVecEnv([LineEnv])).step(np.zeros((1, 1), np.float32))
