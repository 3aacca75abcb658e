"""Cards: the JSON document beside a demonstration set that says what it is and where it is from.

Nothing here runs anything that a card or a set names: commands, modules and environments in a card
are texts, and arrays are read without unpickling.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
from pathlib import Path
from typing import Any, Literal

import pydantic

from sb3_diffbc.demonstrations import formats, loading
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.schema import Model, NonNegativeInt, Number, parse_json


class Score(Model):
    """How good episodes are; other fields are kept as they are.

    Attributes:
        metric: what the mean is of; success is a share from 0 to 1.
        mean: over episodes.
    """

    model_config = pydantic.ConfigDict(extra="allow")

    metric: Literal["success", "return"]
    mean: Number


class EpisodeLength(Model):
    """Lengths of the episodes in steps."""

    mean: Number
    min: NonNegativeInt
    max: NonNegativeInt


class ArrayCard(Model):
    """One array of the set."""

    shape: list[NonNegativeInt]
    dtype: str
    meaning: str


class Card(Model):
    """What a card must say; other fields are kept as they are.

    Attributes:
        expert_score: of the expert in any episode, if it was evaluated.
        score: of the episodes in the set.
        kept: which episodes are in it.
        seed: of the environment.
        episodes_tried: how many were played for it.
        command: that made it.
        versions: of the libraries that made it.
    """

    model_config = pydantic.ConfigDict(extra="allow")

    name: str
    task: str
    env_id: str
    env_kwargs: dict[str, Any]
    expert: str
    expert_score: dict[str, Any]
    score: Score
    kept: str
    seed: int
    episodes: NonNegativeInt
    episodes_tried: NonNegativeInt
    transitions: NonNegativeInt
    episode_length: EpisodeLength
    arrays: dict[str, ArrayCard]
    command: str
    versions: dict[str, str]
    licence: str
    file: str
    sha256: str


def locate(source: str | os.PathLike[str]) -> Path:
    """Finds the ``.npz`` of a demonstration set, which need not exist; its card lies beside it."""
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"`source` must be the name of a bundled set or a path, found {type(source).__name__}."
        )
    path = Path(source).expanduser()
    if path.suffix.lower() in (".npz", ".json"):
        return path if path.suffix.lower() == ".npz" else path.with_suffix(".npz")
    name, known = str(source), loading.bundled_names()
    if name not in known:
        raise ValueError(
            f"`source` {name!r} must be the name of a bundled set, one of {list(known)}, or a path "
            "that ends in .npz or .json."
        )
    return loading.bundled_path(name)


def read_card(source: str | os.PathLike[str]) -> Card:
    """Reads the card of a demonstration set and checks its fields, though not the set.

    Args:
        source: the name of a bundled set, or a path to its ``.npz`` or its card.

    Returns:
        The card.

    Raises:
        FileNotFoundError: if there is no card.
        ValueError: if ``source`` is unknown, the card is not JSON, or fields are missing or wrong.
        TypeError: if ``source`` is no text and no path.
    """
    path = locate(source).with_suffix(".json")
    return parse_json(Card, path.read_bytes(), f"{path}: card")


def check_card(source: str | os.PathLike[str]) -> list[str]:
    """Checks a demonstration set against its card.

    The card has to be sound (see :func:`read_card`), and the set the file that it describes: hash,
    names, shapes and dtypes of all arrays, numbers and lengths of episodes. Pickled objects are
    refused.

    Args:
        source: the name of a bundled set, or a path to its ``.npz`` or its card.

    Returns:
        What is wrong, one text per finding; empty if nothing is.

    Raises:
        ValueError: if ``source`` is neither a bundled set's name nor a path to a set or a card.
            What is wrong with files is no error but a finding.
        TypeError: if ``source`` is no text and no path.
    """
    path = locate(source)
    try:
        card = read_card(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        arrays = dict(formats.open_npz(path))
        dones = loading.load_demonstrations(path).dones
    except (OSError, TypeError, ValueError) as error:
        return [str(error)]
    lengths = lengths_of(dones)
    mean = round(float(lengths.mean()), 2)
    stated_arrays = {name: (array.shape, array.dtype) for name, array in card.arrays.items()}
    facts = {
        "name": (card.name, path.stem),
        "file": (card.file, path.name),
        "sha256": (card.sha256, sha256),
        "transitions": (card.transitions, len(dones)),
        "episodes": (card.episodes, len(lengths)),
        "episode_length": (
            card.episode_length,
            EpisodeLength(mean=mean, min=int(lengths.min()), max=int(lengths.max())),
        ),
        "arrays": (sorted(stated_arrays), sorted(arrays)),
        **{
            f"arrays.{name}": (stated_arrays[name], (list(array.shape), str(array.dtype)))
            for name, array in arrays.items()
            if name in stated_arrays
        },
    }
    return [
        f"the card says `{field}` {reprlib.repr(stated)}, the file has {actual!r}"
        for field, (stated, actual) in facts.items()
        if stated != actual
    ]
