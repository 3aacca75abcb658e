"""Observations and actions of unusual spaces: images channels last, matrices, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.algorithms import dagger
from imitation.data.types import DictObs, Transitions
from imitation.policies.base import RandomPolicy
from imitation.util import logger as imit_logger
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import (
    CONTINUOUS,
    CRITIC_KWARGS,
    IMAGE,
    VECTOR,
    critic,
    policy,
    sample,
    space_id,
    train,
    trainer,
    transitions,
    weights,
)

from sb3_diffbc import DiffusionBC, StandardizedActorPolicy, load_policy
from sb3_diffbc.critic import PairEncoder
from sb3_diffbc.policies import StandardizedFeatures

CHANNELS_LAST = spaces.Box(0, 255, (36, 40, 3), np.uint8)
CHANNELS_FIRST = spaces.Box(0, 255, (3, 36, 40), np.uint8)
WITH_IMAGE = spaces.Dict({"image": CHANNELS_LAST, "vector": VECTOR})


class ImageEnv(gym.Env):
    """Noise to look at, for three steps."""

    action_space = CONTINUOUS

    def __init__(self, observation_space: gym.Space = CHANNELS_LAST) -> None:
        self.observation_space = observation_space

    def _observation(self) -> Any:
        obs = sample(self.observation_space, 1, self.np_random)
        return {k: v[0] for k, v in obs.items()} if isinstance(obs, DictObs) else obs[0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps_left = 3
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps_left -= 1
        return self._observation(), float(action[0]), self.steps_left == 0, False, {}


def first(obs: Any) -> Any:
    """The same observations with the images channels first."""
    if isinstance(obs, dict | DictObs):
        return {key: first(value) for key, value in obs.items()}
    return np.moveaxis(obs, -1, 1) if obs.ndim == 4 else np.array(obs)


def plain(obs: Any) -> Any:
    return {key: np.array(v) for key, v in obs.items()} if isinstance(obs, DictObs) else obs


@pytest.mark.parametrize("space", [CHANNELS_LAST, WITH_IMAGE], ids=space_id)
def test_images_with_their_channels_last_are_learnt_from(space: gym.Space, tmp_path: Path) -> None:
    env, data = ImageEnv(space), transitions(space)
    algorithm = trainer(env=env, demonstrations=data, policy=None)
    train(algorithm, n_batches=2)
    assert algorithm.observation_space == space
    obs = plain(data.obs)
    actions, _ = algorithm.predict(obs, deterministic=True)
    assert actions.shape == (64, 2)
    np.testing.assert_array_equal(algorithm.predict(first(obs), deterministic=True)[0], actions)
    result = algorithm.evaluate(2)
    assert len(result.returns) == 2
    np.testing.assert_array_equal(result.returns, algorithm.evaluate(2, n_parallel=1).returns)
    assert len(algorithm.evaluate(2, env=DummyVecEnv([lambda: env])).returns) == 2
    # Alone, and with everything else.
    alone = load_policy(algorithm.save_policy(tmp_path / "policy"), device="cpu")
    np.testing.assert_array_equal(alone.predict(obs, deterministic=True)[0], actions)
    path = algorithm.save(tmp_path / "trainer")
    train(algorithm, n_batches=2)
    loaded = DiffusionBC.load(path, demonstrations=data, env=env, verbose=0, device="cpu")
    train(loaded, n_batches=2)
    assert th.equal(weights(loaded.policy), weights(algorithm.policy))


def test_the_order_of_the_channels_makes_no_difference() -> None:
    results = []
    for space in (CHANNELS_LAST, CHANNELS_FIRST):
        data = transitions(CHANNELS_LAST)
        obs = data.obs if space is CHANNELS_LAST else first(data.obs)
        data = Transitions(**{**vars(data), "obs": obs, "next_obs": obs})
        th.manual_seed(0)
        algorithm = trainer(space, demonstrations=data, policy=None, dm_coef=0.0)
        train(algorithm, n_batches=3)
        results.append(weights(algorithm.policy))
    assert th.equal(*results)


@pytest.mark.parametrize("make", ["class", "instance"])
def test_sb3s_policies_take_images_as_in_sb3(make: str, tmp_path: Path) -> None:
    given: Any = {
        "class": lambda: ActorCriticCnnPolicy,
        "instance": lambda: ActorCriticCnnPolicy(CHANNELS_FIRST, CONTINUOUS, lambda _: 1.0),
    }[make]()
    algorithm = trainer(env=ImageEnv(), demonstrations=transitions(CHANNELS_LAST), policy=given)
    assert algorithm.policy.observation_space == CHANNELS_FIRST
    train(algorithm, n_batches=2)
    assert len(algorithm.evaluate(1).returns) == 1
    loaded = DiffusionBC.load(algorithm.save(tmp_path / "trainer"), verbose=0, device="cpu")
    assert th.equal(weights(loaded.policy), weights(algorithm.policy))


def test_a_policy_whose_own_images_are_channels_last_keeps_them(tmp_path: Path) -> None:
    actor = policy(CHANNELS_LAST, features_extractor_class=StandardizedFeatures)
    algorithm = trainer(CHANNELS_LAST, policy=actor)
    train(algorithm, n_batches=1)
    loaded = DiffusionBC.load(algorithm.save(tmp_path / "trainer"), verbose=0, device="cpu")
    assert loaded.policy.observation_space == CHANNELS_LAST
    obs = transitions(CHANNELS_LAST).obs
    found, expected = (a.predict(obs, deterministic=True)[0] for a in (loaded, algorithm))
    np.testing.assert_array_equal(found, expected)


def test_statistics_of_images_may_be_shared() -> None:
    data = transitions(CHANNELS_LAST)
    actor = StandardizedActorPolicy.from_demonstrations(data, CHANNELS_LAST, CONTINUOUS)
    assert actor.observation_space == CHANNELS_FIRST
    train(trainer(CHANNELS_LAST, policy=actor, critic=critic(CHANNELS_LAST)), n_batches=1)


def test_dagger_runs_with_images_channels_last(tmp_path: Path) -> None:
    venv = DummyVecEnv([ImageEnv] * 2)
    learner = dagger.SimpleDAggerTrainer(
        venv=venv,
        scratch_dir=tmp_path / "scratch",
        expert_policy=RandomPolicy(venv.observation_space, venv.action_space),
        bc_trainer=DiffusionBC(
            env=venv, critic_kwargs=CRITIC_KWARGS, batch_size=8, verbose=0, device="cpu"
        ),
        rng=np.random.default_rng(0),
        custom_logger=imit_logger.configure(tmp_path / "log", []),
    )
    before = weights(learner.policy)
    learner.train(
        20,
        rollout_round_min_episodes=2,
        rollout_round_min_timesteps=10,
        bc_train_kwargs={"n_batches": 2, "progress_bar": False, "log_rollouts_venv": venv},
    )
    assert not th.equal(weights(learner.policy), before)


@pytest.mark.parametrize(
    "space",
    [spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Dict(i=spaces.Box(0, 255, (3, 8, 8), "u1"))],
    ids=space_id,
)
def test_images_too_small_for_sb3s_network_are_refused_with_advice(space: gym.Space) -> None:
    with pytest.raises(ValueError, match=r"expected at least 36 x 36 pixels.*policy_kwargs"):
        trainer(space, policy=None)
    kwargs = {"features_extractor_class": StandardizedFeatures}
    train(trainer(space, policy=None, policy_kwargs=kwargs), n_batches=1)


@pytest.mark.parametrize("bc_loss", ["nll", "mse"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), ()], ids=str)
def test_box_actions_of_any_shape_are_learnt(
    shape: tuple[int, ...], bc_loss: str, tmp_path: Path
) -> None:
    action_space = spaces.Box(-1, 1, shape, np.float32)
    data = transitions(VECTOR, action_space)
    algorithm = trainer(VECTOR, action_space, policy=None, bc_loss=bc_loss)
    train(algorithm, n_batches=2)
    path = algorithm.save(tmp_path / "trainer")
    train(algorithm, n_batches=150)
    predicted, _ = algorithm.predict(data.obs, deterministic=True)
    assert predicted.shape == (64, *shape)
    assert action_space.contains(np.asarray(algorithm.predict(data.obs[0])[0], np.float32))
    # Better than the best constant.
    assert np.mean((predicted - data.acts) ** 2) < 0.5 * np.mean(data.acts.var(axis=0))
    loaded = DiffusionBC.load(path, demonstrations=data, verbose=0, device="cpu")
    train(loaded, n_batches=150)
    assert th.equal(weights(loaded.policy), weights(algorithm.policy))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "float16", "float64"])
def test_box_actions_of_any_dtype_are_learnt(dtype: str) -> None:
    action_space = spaces.Box(0, 1, (2,), np.dtype(dtype).type)
    data = transitions()
    acts = (data.acts > 0).astype(dtype)
    for bc_loss in ("nll", "mse"):
        algorithm = trainer(
            VECTOR,
            action_space,
            demonstrations=Transitions(**{**vars(data), "acts": acts}),
            bc_loss=bc_loss,
        )
        train(algorithm, n_batches=2)
        assert th.isfinite(weights(algorithm.policy)).all()


EMPTY = spaces.Box(-1, 1, (0,))
SCALAR = spaces.Box(-1, 1, ())
LONG = spaces.Box(-1, 1, (2,), np.longdouble)
TABLE = spaces.MultiDiscrete(np.array([[2, 3], [2, 2]]))


@pytest.mark.parametrize(
    ("argument", "space", "error", "message"),
    [
        ("observation_space", EMPTY, ValueError, "has no elements"),
        ("observation_space", SCALAR, ValueError, r"no dimensions.*expected shape \(1,\)"),
        ("observation_space", TABLE, ValueError, "2 dimensions.*flatten"),
        ("observation_space", spaces.Dict({}), TypeError, "not supported: expected one of"),
        ("observation_space", spaces.Dict(a=spaces.Dict(b=VECTOR)), TypeError, "not supported"),
        ("observation_space", spaces.Tuple([VECTOR]), TypeError, "or a Dict of these"),
        ("observation_space", "Box", TypeError, "instance of Space, found 'Box'"),
        ("action_space", spaces.Dict(a=CONTINUOUS), TypeError, "not supported: expected one of"),
        ("action_space", spaces.MultiBinary((2, 2)), ValueError, "MultiBinary.*flatten"),
        ("action_space", 3, TypeError, "instance of Space, found 3"),
    ],
    ids=str,
)
def test_spaces_that_no_policy_takes_are_refused(
    argument: str, space: Any, error: type[Exception], message: str
) -> None:
    given = {"observation_space": VECTOR, "action_space": CONTINUOUS, argument: space}
    with pytest.raises(error, match=message) as found:
        DiffusionBC(**given, verbose=0)
    assert argument in str(found.value) or "MultiBinary" in str(found.value)


@pytest.mark.skipif(np.longdouble is np.float64, reason="this platform has no longer doubles")
def test_numbers_that_torch_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match=r"observation_space\['a'\]=.* has the dtype"):
        PairEncoder(spaces.Dict(a=LONG), CONTINUOUS)
    with pytest.raises(ValueError, match=r"action_space=.* has the dtype"):
        PairEncoder(IMAGE, LONG)
