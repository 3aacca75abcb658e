"""Thousands of damaged checkpoints of every kind: documented errors within limits, or a load.

``SB3_DIFFBC_MUTATIONS`` says how many of each kind, 1,000 by default.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch as th
from checkpoint_files import checkpoint_mutations, put_together, taken_apart
from fuzzing import mutations, survives, zip_mutations
from gymnasium import spaces
from toys import CONTINUOUS, MAPPING, VECTOR, critic, policy, train, trainer, transitions

from sb3_diffbc import CheckpointError, DiffusionBC, DiffusionCritic, load_policy
from sb3_diffbc.policies import save_policy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")

N_MUTATIONS = int(os.environ.get("SB3_DIFFBC_MUTATIONS", "1000"))
MEMORY = 300 * 2**20
SECONDS = 5.0
DATA = transitions()


def load_trainer(path: Path) -> None:
    algorithm = DiffusionBC.load(path, verbose=0, device="cpu")
    with contextlib.suppress(ValueError):  # A batch size or share to hold out that does not fit.
        algorithm.set_demonstrations(DATA)
    parameters = list(algorithm.policy.parameters())
    for parameter in parameters:
        parameter.grad = th.full_like(parameter, 1e-3)
    try:
        algorithm.optimizer.step()
    except Exception as error:
        raise AssertionError(f"it loaded, but cannot train: {error}") from error
    assert all(parameter.isfinite().all() for parameter in parameters)


def load_critic(path: Path) -> None:
    assert all(t.isfinite().all() for t in DiffusionCritic.load(path, device="cpu").parameters())


def load_actor(path: Path) -> None:
    loaded = load_policy(path, device="cpu")
    if loaded.observation_space == MAPPING:
        loaded.predict(MAPPING.sample())


def load_expert_file(path: Path) -> None:
    load_policy(path, device="cpu")


def load_release(path: Path) -> None:
    made = DiffusionCritic.from_release(path, DATA, VECTOR, CONTINUOUS, device="cpu")
    assert all(tensor.isfinite().all() for tensor in made.state_dict().values())


def release_weights() -> dict[str, th.Tensor]:
    sizes = [5, 8, 8, 8, 5]
    weights: dict[str, th.Tensor] = {}
    for i, (size_in, size_out) in enumerate(pairwise(sizes)):
        weights[f"linears.{2 * i}.weight"] = th.randn(size_out, size_in)
        weights[f"linears.{2 * i}.bias"] = th.randn(size_out)
    return weights | {f"step_embeddings.{i}.weight": th.randn(9, 8) for i in range(2)}


def save_trainer(path: Path) -> Path:
    algorithm = trainer(demonstrations=DATA, seed=3, critic_kwargs={"width": 8, "n_steps": 2})
    train(algorithm, n_batches=3)
    return algorithm.save(path)


def save_release(path: Path) -> Path:
    th.save(release_weights(), path)
    return path


def copy_expert(path: Path) -> Path:
    import sb3_diffbc.experts

    folder = Path(sb3_diffbc.experts.__file__).parent
    path.write_bytes((folder / "cheetah.safetensors").read_bytes())
    return path


def of_release(data: bytes, seed: int, n: int) -> Iterator[bytes]:
    yield from mutations(data, seed, n // 2)
    yield from zip_mutations(data, seed, n - n // 2)


Mutations = Callable[[bytes, int, int], Iterator[bytes]]
FORMATS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None], str, Mutations]] = {
    "trainer": (save_trainer, load_trainer, ".safetensors", checkpoint_mutations),
    "policy": (
        lambda path: save_policy(policy(MAPPING, spaces.MultiDiscrete([2, 3])), path),
        load_actor,
        ".safetensors",
        checkpoint_mutations,
    ),
    "critic": (
        lambda path: critic(n_steps=1).save(path),
        load_critic,
        ".safetensors",
        checkpoint_mutations,
    ),
    "expert": (copy_expert, load_expert_file, ".safetensors", checkpoint_mutations),
    "release": (save_release, load_release, ".pt", of_release),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_give_documented_errors_within_limits(kind: str, tmp_path: Path) -> None:
    save, load, suffix, damage = FORMATS[kind]
    data = save(tmp_path / f"whole{suffix}").read_bytes()
    load(tmp_path / f"whole{suffix}")
    damaged = damage(data, zlib.crc32(kind.encode()), N_MUTATIONS)
    # from_release documents ValueError; the others' is a subclass of it.
    allowed: tuple[type[Exception], ...] = (ValueError if kind == "release" else CheckpointError,)
    assert survives(load, damaged, suffix, allowed, MEMORY, SECONDS) == []


Content = dict[str, Any]


def widths(content: Content) -> None:
    content["policy"]["arguments"]["net_arch"] = {"pi": [2**16] * 64, "vf": [2**16] * 64}


def critic_sizes(content: Content) -> None:
    content["config"] |= {"width": 2**14, "depth": 2**6}


def release_sizes(content: Content) -> None:
    content["config"] |= {"denoiser": "release", "width": 2**14, "num_train_timesteps": 2**17}


def shape_of(name: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[name] |= {"shape": [2**13, 2**12], "dtype": "float64"}
        bounds = {"low": 0, "high": 1, "bounded_below": True, "bounded_above": True}
        content[name] |= bounds

    return change


def categories(name: str) -> Callable[[Content], None]:
    return lambda content: content.update(
        {name: {"type": "Discrete", "n": 2**34, "start": 0, "dtype": "int64"}}
    )


HUNGRY: dict[str, tuple[str, Callable[[Content], None]]] = {
    "widths": ("policy", widths),
    "trainer's widths": ("trainer", widths),
    "critic": ("critic", critic_sizes),
    "release": ("critic", release_sizes),
    **{
        f"{what.__name__} {kind} {name}": (kind, what(name))
        for what in (shape_of, categories)
        for kind in ("policy", "trainer", "critic")
        for name in ("observation_space", "action_space")
    },
}


@pytest.mark.parametrize("case", HUNGRY)
def test_a_small_file_cannot_ask_for_much_memory(case: str, tmp_path: Path) -> None:
    kind, change = HUNGRY[case]
    save, load, suffix, _ = FORMATS[kind]
    header, rest = taken_apart(save(tmp_path / f"whole{suffix}").read_bytes())
    content = json.loads(header["__metadata__"]["content"])
    change(content)
    header["__metadata__"]["content"] = json.dumps(content)
    files = [put_together(header, rest)]
    assert survives(load, files, suffix, (CheckpointError,), 100 * 2**20, SECONDS) == []


@pytest.mark.parametrize("name", ["step_embeddings.0.weight", "linears.2.weight"])
def test_a_small_file_of_the_release_cannot_ask_for_much_memory(name: str, tmp_path: Path) -> None:
    weights = release_weights()
    large = (2**17, 2**14) if name.startswith("step") else (2**14, 2**14)
    weights[name] = weights[name][:1, :1].expand(large)
    th.save(weights, tmp_path / "small.pt")
    files = [(tmp_path / "small.pt").read_bytes()]
    assert survives(load_release, files, ".pt", (ValueError,), 100 * 2**20, SECONDS) == []
    for tensor in (weights, {key: value.to("meta") for key, value in release_weights().items()}):
        with pytest.raises(ValueError, match="cannot be taken over"):
            DiffusionCritic.from_release(tensor, DATA, VECTOR, CONTINUOUS, device="cpu")
