"""Makes the bundled Maze demonstrations.

    python -m benchmarks.make_maze_demonstrations --seed 0 --episodes 100 \
        --out sb3_diffbc/demonstrations/bundled/maze.npz

Rolls out the scripted expert, keeps the episodes that reach the goal, and writes their transitions
as a compressed `.npz` of plain arrays with a card (`.json`) beside it that says where they come
from. The same seed gives the same bytes as long as Python, NumPy and MuJoCo stay the same; other
versions may round or compress differently, so the card names those that were used.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sb3_diffbc.envs import MAZE_ENV_ID
from sb3_diffbc.envs.maze_expert import MazeExpert

ARRAYS = {
    "obs": "observation: position (2), velocity (2), goal (2)",
    "acts": "the expert's action for obs",
    "next_obs": "observation after the step",
    "dones": "whether the episode ended with this step (at the goal)",
}
MAX_TRIES_PER_EPISODE = 10


@dataclasses.dataclass
class Demonstrations:
    """What a collection gave.

    Attributes:
        arrays: The transitions by the names in `ARRAYS`, in the order in which they happened.
        episode_lengths: Steps of each kept episode.
        tried: Episodes that were rolled out, the failed ones included.
    """

    arrays: dict[str, NDArray[Any]]
    episode_lengths: list[int]
    tried: int


def collect(episodes: int, seed: int, action_noise: float = 0.0) -> Demonstrations:
    """Rolls out the expert until enough episodes have succeeded.

    Args:
        episodes: Number of successful episodes to keep.
        seed: Seeds the starts, the goals and the noise.
        action_noise: Standard deviation of Gaussian noise added to the action that is executed,
            which makes the expert show how it recovers. The recorded action stays the expert's
            own; with noise, `next_obs` is therefore not what the recorded action leads to.

    Returns:
        The transitions and the counts that belong to them.

    Raises:
        RuntimeError: If the expert fails too often to collect the episodes.
    """
    env = gym.make(MAZE_ENV_ID)
    expert = MazeExpert(env.observation_space, env.action_space)
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    rows: list[tuple[Any, ...]] = []
    lengths: list[int] = []
    tried = 0
    with tqdm(total=episodes, desc="demonstrations", unit="episode") as bar:
        while len(lengths) < episodes:
            if tried >= episodes * MAX_TRIES_PER_EPISODE:
                raise RuntimeError(
                    f"The expert reached the goal in {len(lengths)} of {tried} episodes; "
                    f"gave up collecting {episodes}."
                )
            tried += 1
            episode = _roll_out(env, expert, rng, action_noise)
            if episode is not None:
                rows.extend(episode)
                lengths.append(len(episode))
                bar.update()
    env.close()
    obs, acts, next_obs, dones = (np.stack(column) for column in zip(*rows, strict=True))
    arrays = {"obs": obs, "acts": acts, "next_obs": next_obs, "dones": dones}
    return Demonstrations(arrays, lengths, tried)


def _roll_out(
    env: gym.Env, expert: MazeExpert, rng: np.random.Generator, action_noise: float
) -> list[tuple[Any, ...]] | None:
    """Plays one episode; gives its rows, or None where the goal was not reached."""
    rows: list[tuple[Any, ...]] = []
    obs, _ = env.reset()
    while True:
        act, _ = expert.predict(obs, deterministic=True)
        executed = act
        if action_noise > 0:
            noise = rng.normal(scale=action_noise, size=act.shape)
            executed = np.clip(act + noise, -1.0, 1.0).astype(np.float32)
        next_obs, _, terminated, truncated, _ = env.step(executed)
        rows.append((obs, act, next_obs, np.bool_(terminated)))
        if terminated:
            return rows
        if truncated:
            return None
        obs = next_obs


def write(demonstrations: Demonstrations, out: Path, command: str, **settings: Any) -> None:
    """Writes the arrays and, beside them with the suffix `.json`, the card.

    Args:
        demonstrations: What `collect` gave.
        out: Path of the `.npz`; its folder is made where missing.
        command: Command line that makes the file again.
        **settings: Further fields for the card, such as the seed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **demonstrations.arrays)  # type: ignore[arg-type]
    lengths = demonstrations.episode_lengths
    card = {
        "name": out.stem,
        "env_id": MAZE_ENV_ID,
        "env_kwargs": {},
        "expert": "sb3_diffbc.envs.maze_expert.MazeExpert: shortest path over the cells, "
        "then a proportional-derivative controller towards a point ahead on the path",
        "episodes": len(lengths),
        "transitions": sum(lengths),
        "episode_length": {
            "mean": round(float(np.mean(lengths)), 2),
            "min": min(lengths),
            "max": max(lengths),
        },
        "episodes_tried": demonstrations.tried,
        "expert_success_rate": round(len(lengths) / demonstrations.tried, 4),
        **settings,
        "arrays": {
            name: {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "meaning": ARRAYS[name],
            }
            for name, array in demonstrations.arrays.items()
        },
        "command": command,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "mujoco": mujoco.__version__,
            "gymnasium": gym.__version__,
        },
        "licence": "MIT",
        "file": out.name,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }
    out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and writes the demonstrations.

    Args:
        argv: Arguments; those of the process where None.
    """
    parser = argparse.ArgumentParser(
        description="Roll out the scripted Maze expert and save its demonstrations.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seeds starts, goals and noise")
    parser.add_argument("--episodes", type=int, default=100, help="successful episodes to keep")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument(
        "--action-noise",
        type=float,
        default=0.0,
        help="standard deviation of noise on the executed action, which is not recorded",
    )
    args = parser.parse_args(argv)
    if args.episodes < 1:
        parser.error(f"--episodes: found {args.episodes}, expected at least 1")
    if args.action_noise < 0:
        parser.error(f"--action-noise: found {args.action_noise}, expected at least 0")
    if args.out.suffix != ".npz":
        parser.error(f"--out: found {args.out}, expected a path that ends in .npz")

    demonstrations = collect(args.episodes, args.seed, args.action_noise)
    options = ["--seed", str(args.seed), "--episodes", str(args.episodes)]
    if args.action_noise:
        options += ["--action-noise", str(args.action_noise)]
    options += ["--out", args.out.as_posix()]
    command = shlex.join(["python", "-m", "benchmarks.make_maze_demonstrations", *options])
    write(demonstrations, args.out, command, seed=args.seed, action_noise=args.action_noise)
    print(
        f"{args.out}: {len(demonstrations.episode_lengths)} episodes, "
        f"{len(demonstrations.arrays['obs'])} transitions, "
        f"{args.out.stat().st_size / 1000:.0f} kB"
    )


if __name__ == "__main__":
    main()
