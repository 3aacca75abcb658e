"""Draws what the critic makes of two toys, and what L_DM makes of the policy.

One observation s, one action a. Above, an expert who was not seen in two gaps; below, two operators
who pass an obstacle on one side each. Policies are cloned with a squared and an absolute error, and
by DiffusionBC with the squared one and critics of p(a | s) and of p(s, a).

    python examples/critic_toy.py
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import torch as th

from sb3_diffbc import DiffusionBC, DiffusionCritic

matplotlib.use("Agg")  # draws without a screen
from matplotlib import pyplot as plt
from matplotlib.patches import Circle

N_PAIRS = 600
N_SAMPLES = 400
N_DRAWS = 512
SPACES = {name: gym.spaces.Box(-1, 1, (1,)) for name in ("observation_space", "action_space")}
CRITICS = {"p(a | s)": "action", "p(s, a)": "state_action"}
DM_COEFS = {1: "tab:orange", 10: "tab:red"}
"""λ, and colours."""
OBSTACLE_RADIUS = 0.4
GRID = np.linspace(-1, 1, 201, dtype=np.float32)[:, None]


@dataclass
class Toy:
    """Observations and actions, ``(n, 1)``.

    ``looked_at`` is an observation for which losses are drawn, ``expert_acts`` what the expert does
    there.
    """

    title: str
    obs: np.ndarray
    acts: np.ndarray
    looked_at: float
    expert_acts: tuple[float, ...]

    @property
    def demonstrations(self) -> dict[str, np.ndarray]:
        return {"obs": self.obs, "acts": self.acts}


def curve(rng: np.random.Generator) -> Toy:
    """Actions on a curve, seen everywhere but in two gaps."""
    obs = rng.uniform(-1, 1, (3 * N_PAIRS, 1))
    is_seen = ((obs < -0.6) | (obs > -0.2)) & ((obs < 0.2) | (obs > 0.6))
    obs = obs[is_seen][:N_PAIRS, None]
    acts = 0.7 * np.sin(4 * obs) + rng.normal(0, 0.03, obs.shape)
    expert_act = 0.7 * np.sin(4 * -0.4)
    return Toy("A curve with gaps", np.float32(obs), np.float32(acts), -0.4, (expert_act,))


def lanes(rng: np.random.Generator) -> Toy:
    """Ways around an obstacle, 40 % of them below."""
    obs = rng.uniform(-1, 1, (N_PAIRS, 1))
    side = np.where(rng.random(obs.shape) < 0.4, -1, 1)
    acts = side * 0.75 * np.exp(-((obs / 0.4) ** 2)) + rng.normal(0, 0.04, obs.shape)
    return Toy("Two ways around", np.float32(obs), np.float32(acts), 0.0, (-0.75, 0.75))


def clone(toy: Toy, n_updates: int, **arguments: object) -> np.ndarray:
    """Trains a policy; returns its actions on the grid."""
    trainer = DiffusionBC(
        demonstrations=toy.demonstrations,
        **SPACES,
        optimizer_kwargs={"lr": 2e-3},
        seed=0,
        device="cpu",
        verbose=0,
        **arguments,
    )
    trainer.DEFAULT_N_BATCHES = n_updates
    trainer.train(progress_bar=False)
    return trainer.predict(GRID, deterministic=True)[0]


def fitted_critic(toy: Toy, models: str, n_steps: int) -> DiffusionCritic:
    critic = DiffusionCritic(
        **SPACES, models=models, n_steps=n_steps, max_epochs=n_steps, seed=0, device="cpu"
    )
    critic.fit(toy.demonstrations | {"dones": np.zeros(len(toy.obs), bool)}, progress_bar=False)
    return critic


def samples(critic: DiffusionCritic) -> tuple[th.Tensor, th.Tensor]:
    """Draws pairs from the critic, for observations all over the range where it needs some."""
    generator = th.Generator().manual_seed(0)
    if critic.models == "state_action":
        return critic.sample(N_SAMPLES, generator=generator)
    obs = th.linspace(-1, 1, N_SAMPLES)[:, None]
    return obs, critic.sample(obs=obs, generator=generator)[1]


def mean_losses(critic: DiffusionCritic, obs: float) -> np.ndarray:
    """Returns L_diff of one observation with each action of the grid, a mean over draws."""
    noise = critic.draw_noise(N_DRAWS, th.Generator().manual_seed(0))
    state = th.full((N_DRAWS, 1), obs)
    losses = [
        critic.denoising_loss(state, th.full((N_DRAWS, 1), float(act)), noise=noise).mean()
        for act in GRID[:, 0]
    ]
    return th.stack(losses).numpy()


def draw_toy(axes: np.ndarray, toy: Toy, n_updates: int, critic_steps: int) -> None:
    """Fills a row of panels: cloning alone, one panel per critic, and the critics' losses."""
    cloning_axis, *critic_axes, loss_axis = axes
    squared = clone(toy, n_updates, dm_coef=0, bc_loss="mse")
    cloning_axis.plot(GRID, squared, color="tab:blue", label="squared error")
    absolute = clone(toy, n_updates, dm_coef=0, bc_loss="l1")
    cloning_axis.plot(GRID, absolute, color="tab:green", label="absolute error")
    cloning_axis.set_title("Cloning alone")
    for axis, (name, models), style in zip(critic_axes, CRITICS.items(), "-:", strict=True):
        critic = fitted_critic(toy, models, critic_steps)
        axis.plot(*samples(critic), ".", color="black", ms=1.5, label="critic's samples")
        axis.plot(GRID, squared, color="tab:blue", label="λ = 0")
        for dm_coef, colour in DM_COEFS.items():
            actions = clone(toy, n_updates, critic=critic, dm_coef=dm_coef, bc_loss="mse")
            axis.plot(GRID, actions, color=colour, label=f"λ = {dm_coef}")
        axis.set_title(f"Squared error + λ · L_DM of {name}")
        loss_axis.plot(
            GRID, mean_losses(critic, toy.looked_at), style, color="black", label=f"of {name}"
        )
    for number, act in enumerate(toy.expert_acts):
        loss_axis.axvline(act, color="silver", zorder=0, label="_" * number + "expert's action")
    loss_axis.set(title=f"The critics' loss at s = {toy.looked_at:g}", yscale="log", xlabel="a")
    for axis in axes[:3]:
        axis.plot(toy.obs, toy.acts, ".", color="silver", ms=3, zorder=0, label="demonstrations")
        axis.set(xlim=(-1, 1), ylim=(-1, 1), xlabel="s")
    axes[0].set_ylabel(f"{toy.title}\n\na")


def main() -> None:
    """Fits, trains and draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=1_500, help="of each policy")
    parser.add_argument("--critic-steps", type=int, default=2_000, help="at most")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    th.set_num_threads(1)  # networks this small lose more to threads than they gain

    toys: tuple[Callable[[np.random.Generator], Toy], ...] = (curve, lanes)
    figure, rows = plt.subplots(len(toys), 4, figsize=(14, 7), layout="constrained")
    for row, make in zip(rows, toys, strict=True):
        draw_toy(row, make(np.random.default_rng(0)), options.updates, options.critic_steps)
    for axis in rows[1, :3]:
        axis.add_patch(Circle((0, 0), OBSTACLE_RADIUS, color="tan", alpha=0.4, lw=0))
    for axis in rows[1]:
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "critic_toy.png"
    figure.savefig(path, dpi=75, metadata={"Software": None})
    print(f"The picture is {path}.")


if __name__ == "__main__":
    main()
