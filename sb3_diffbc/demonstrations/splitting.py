"""Demonstrations that are held out, by whole trajectories."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from imitation.data import types

from sb3_diffbc.demonstrations.batches import flattened, transitions_or_batches
from sb3_diffbc.demonstrations.trajectories import ends_of, lengths_of, some_rows
from sb3_diffbc.schema import Fraction, NonNegativeInt, checked_arguments


def hold_out(
    demonstrations: Any, fraction: Fraction, *, seed: NonNegativeInt = 0
) -> tuple[Any, types.Transitions]:
    """Splits demonstrations into some to train on and some to hold out, by whole trajectories.

    ``DiffusionBC`` does so for its ``validation_fraction``. The choice is random, but depends on
    the number of trajectories, the fraction and the seed alone.

    Args:
        demonstrations: what :func:`load_demonstrations` takes; ``dones``, or a list of
            trajectories, tell where one ends.
        fraction: share of the trajectories to hold out, above 0 and below 1; at least one of them
            is.
        seed: of the choice.

    Returns:
        What is left, in its old order and copied to memory, and the transitions held out, whose
        ``dones`` mark the last row of each trajectory, cut short or not.

    Raises:
        ValueError: if there are fewer than two trajectories, or no telling where they end, or for
            an argument outside its range.
        TypeError: for an argument of another type.
    """
    checked_arguments(hold_out, {"fraction": fraction, "seed": seed})
    is_rows = not (
        isinstance(demonstrations, Sequence)
        and all(isinstance(each, types.Trajectory) for each in demonstrations)
    )
    if is_rows:
        demonstrations = transitions_or_batches(demonstrations)
        if not isinstance(demonstrations, types.Transitions):
            raise ValueError(
                "demonstrations: holding out whole trajectories needs transitions with dones, or "
                f"trajectories, found {type(demonstrations).__name__}."
            )
        lengths = lengths_of(demonstrations.dones)
    n = len(lengths) if is_rows else len(demonstrations)
    if n < 2:
        raise ValueError(
            f"demonstrations: holding out whole trajectories finds {n} of them"
            f"{' (dones tell where one ends)' if is_rows else ''}: expected at least 2."
        )
    n_held_out = min(n - 1, max(1, round(fraction * n)))
    is_held_out = np.zeros(n, dtype=bool)
    is_held_out[np.random.default_rng(seed).permutation(n)[:n_held_out]] = True
    if not is_rows:
        kept, held = (
            [each for each, flag in zip(demonstrations, is_held_out, strict=True) if flag == wanted]
            for wanted in (False, True)
        )
        return kept, flattened(held)
    is_left = np.repeat(~is_held_out, lengths)
    left, held_out = (some_rows(demonstrations, rows) for rows in (is_left, ~is_left))
    ends = ends_of(lengths[is_held_out], True)  # the last one may have had none
    return left, dataclasses.replace(held_out, dones=ends)
