"""ONNX models compute what `predict` does, without PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imitation.data.types import DictObs
from imitation.policies.base import NonTrainablePolicy
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from toys import (
    CONTINUOUS,
    IMAGE,
    MAPPING,
    VECTOR,
    action_spaces,
    observation_spaces,
    policy,
    sample,
)

from sb3_diffbc import export_onnx
from sb3_diffbc.checkpoints import SpaceRecord
from sb3_diffbc.export import _DeterministicActor
from sb3_diffbc.schema import parse_json

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def session(path: Path) -> Any:
    """A model on one thread, so that tests side by side do not wait for each other."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options)


def assert_equals_predict(actor: ActorCriticPolicy, path: Path, n: int, scale: float = 1) -> None:
    """Compares the model in a file with the policy, on a batch of any size."""
    space = actor.observation_space
    observations = sample(space, n, np.random.default_rng(n))
    if isinstance(observations, DictObs):
        assert isinstance(space, spaces.Dict)
        inputs = {k: v.astype(space[k].dtype) for k, v in observations.items()}
        expected, _ = actor.predict(dict(inputs), deterministic=True)
    else:
        inputs = {"observation": (scale * observations).astype(space.dtype)}
        expected, _ = actor.predict(inputs["observation"], deterministic=True)
    (found,) = session(path).run(["action"], inputs)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(observation_space=observation_spaces(), action_space=action_spaces(), n=st.integers(1, 9))
def test_models_equal_predict_for_every_kind_of_space(
    observation_space: gym.Space, action_space: gym.Space, n: int, tmp_path: Path
) -> None:
    actor = policy(observation_space, action_space)
    assert_equals_predict(actor, export_onnx(actor, tmp_path / "actor.onnx"), n)


@pytest.mark.parametrize(
    ("observation_space", "kwargs"),
    [
        (IMAGE, {}),
        (spaces.Dict(image=IMAGE, vector=VECTOR), {"cls": MultiInputActorCriticPolicy}),
        (VECTOR, {"cls": ActorCriticPolicy, "use_sde": True, "squash_output": True}),
        (spaces.Box(-1, 1, (3,), np.float64), {"cls": ActorCriticPolicy, "use_sde": True}),
    ],
    ids=["image", "image and vector", "squashed", "double precision"],
)
def test_images_and_other_policies_equal_predict(
    observation_space: gym.Space, kwargs: Any, tmp_path: Path
) -> None:
    action_space = spaces.Box(np.float32([-3, 0]), np.float32([1, 0.25]))
    actor = policy(observation_space, action_space, **kwargs)
    assert_equals_predict(actor, export_onnx(actor, tmp_path / "actor"), 5)


def test_limits_are_where_the_policy_is() -> None:
    actor = policy().to("meta")
    assert {buffer.device.type for buffer in _DeterministicActor(actor).buffers()} == {"meta"}


def test_actions_are_limited_to_their_box(tmp_path: Path) -> None:
    bounds = np.float32([[-0.1, -np.inf], [0.2, 0.0]])
    actor = policy(VECTOR, spaces.Box(bounds[0], bounds[1]))
    with th.no_grad():
        actor.action_net[0].weight.mul_(50)
    path = export_onnx(actor, tmp_path / "actor.onnx")
    assert_equals_predict(actor, path, 50, scale=10)
    (found,) = session(path).run(None, {"observation": np.float32(10 * np.eye(3))})
    assert (found >= bounds[0]).all()
    assert (found <= bounds[1]).all()
    assert (found[:, 0] == bounds[1][0]).any() or (found[:, 0] == bounds[0][0]).any()


def test_inputs_have_the_observations_names_and_types_and_metadata_has_the_spaces(
    tmp_path: Path,
) -> None:
    loaded = session(export_onnx(policy(MAPPING, CONTINUOUS), tmp_path / "actor.onnx"))
    assert {i.name: (i.type, i.shape[1:]) for i in loaded.get_inputs()} == {
        "bits": ("tensor(int8)", [2]),
        "choice": ("tensor(int64)", []),
        "vector": ("tensor(float)", [2]),
    }
    assert [(o.name, o.type) for o in loaded.get_outputs()] == [("action", "tensor(float)")]
    metadata = loaded.get_modelmeta().custom_metadata_map
    for name, space in (("observation_space", MAPPING), ("action_space", CONTINUOUS)):
        assert json.loads(metadata[name])["type"] == type(space).__name__
        assert parse_json(SpaceRecord, metadata[name], name).build() == space


def test_keys_that_are_numbers_or_the_outputs_name(tmp_path: Path) -> None:
    numbered = policy(spaces.Dict({"10": VECTOR, "2": spaces.Discrete(2)}), CONTINUOUS)
    assert_equals_predict(numbered, export_onnx(numbered, tmp_path / "actor.onnx"), 4)
    named = policy(spaces.Dict({"action": VECTOR}), CONTINUOUS)
    with pytest.raises(ValueError, match="a key of its observations is 'action'"):
        export_onnx(named, tmp_path / "other.onnx")


def test_exporting_changes_neither_policy_nor_random_state_and_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    actor = policy(VECTOR, CONTINUOUS)
    actor.set_training_mode(True)
    state = th.get_rng_state()
    export_onnx(actor, tmp_path / "new" / "actor.onnx")
    assert th.equal(th.get_rng_state(), state)
    assert actor.training
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


class Scaled(ActorCriticPolicy):
    """A policy with its own way of acting."""

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return 0.5 * super()._predict(observation, deterministic)


def test_policies_that_act_otherwise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Scaled does not compute actions as SB3's own"):
        export_onnx(policy(VECTOR, CONTINUOUS, cls=Scaled), tmp_path / "actor.onnx")
    other: Any = NonTrainablePolicy
    with pytest.raises(TypeError, match="expected an SB3 actor-critic policy"):
        export_onnx(other, tmp_path / "actor.onnx")
    assert not list(tmp_path.iterdir())


def test_without_onnx_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match="pip install onnx"):
        export_onnx(policy(), tmp_path / "actor.onnx")
