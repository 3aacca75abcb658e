"""Cards: the JSON document beside a demonstration set that says what it is and where it is from.

Nothing here runs anything that a card or a set names: commands, modules and environments in a card
are texts, and arrays are read without unpickling.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from sb3_diffbc.demonstrations import formats, loading
from sb3_diffbc.demonstrations.validation import DemonstrationWarning
from sb3_diffbc.schema import Model, NonNegativeInt, Number, parse_json

_ROUNDING = 0.01
"""Cards round the mean length of an episode to two decimals."""


class Score(Model):
    """How good episodes are; other fields are kept as they are.

    Attributes:
        metric: what the mean is of; success is a share from 0 to 1.
        mean: over episodes.
    """

    model_config = pydantic.ConfigDict(extra="allow")

    metric: Literal["success", "return"]
    mean: Number

    @pydantic.model_validator(mode="after")
    def _check_share(self) -> Score:
        if self.metric == "success" and not 0 <= self.mean <= 1:
            raise ValueError(f"mean success must be a share from 0 to 1, got {self.mean}")
        return self


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

    @pydantic.model_validator(mode="after")
    def _check_episodes(self) -> Card:
        if self.episodes_tried < self.episodes:
            raise ValueError(
                f"episodes_tried must be at least episodes, got {self.episodes_tried} and "
                f"{self.episodes}"
            )
        return self


def locate(source: str | os.PathLike[str]) -> Path:
    """Finds the ``.npz`` of a demonstration set, beside which lies its card, a ``.json``.

    Args:
        source: the name of a bundled set, or a path to the ``.npz`` or to the card. What a path
            leads to need not exist.

    Returns:
        The path of the ``.npz``.

    Raises:
        ValueError: if ``source`` is neither a bundled set's name nor a path with one of these
            suffixes.
        TypeError: if ``source`` is no text and no path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"`source` must be the name of a bundled set or a path, found {type(source).__name__}."
        )
    path = Path(os.path.expanduser(source))
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
    if not path.is_file():
        raise FileNotFoundError(f"There is no card at {path}.")
    return parse_json(Card, path.read_bytes(), f"{path}: card")


def check_card(source: str | os.PathLike[str]) -> list[str]:
    """Checks a demonstration set against its card.

    The card has to be sound (see :func:`read_card`), and the set the file that it describes: hash,
    names, shapes and dtypes of all arrays, numbers and lengths of episodes. Floats have to be
    float32, pickled objects are refused, and :func:`load_demonstrations` must have nothing to warn
    about.

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
    findings: list[str] = []
    try:
        for finding in _findings(path):
            findings.append(finding)  # one by one: those before an error count as well
    except (OSError, TypeError, ValueError) as error:
        findings.append(str(error))
    return findings


def _findings(path: Path) -> Iterator[str]:
    """Yields what is wrong, until something is wrong enough to raise."""
    card = read_card(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no demonstration file at {path}.")
    yield from _contradiction("name", card.name, path.stem)
    yield from _contradiction("file", card.file, path.name)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    yield from _contradiction("sha256", card.sha256, sha256)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DemonstrationWarning)
        transitions = loading.load_demonstrations(path)
    yield from (str(w.message) for w in caught if issubclass(w.category, DemonstrationWarning))

    with formats.open_npz(path) as archive:
        arrays = {name: np.asarray(archive[name]) for name in archive.files}
    yield from _contradiction("arrays", sorted(card.arrays), sorted(arrays))
    for name, array in arrays.items():
        if name in card.arrays:
            stated = card.arrays[name]
            yield from _contradiction(f"arrays.{name}.shape", stated.shape, list(array.shape))
            yield from _contradiction(f"arrays.{name}.dtype", stated.dtype, str(array.dtype))
        if array.dtype.kind not in "iub" and array.dtype != np.float32:
            yield f"array {name!r} must be of dtype float32, int or bool, found {array.dtype}"

    ends = transitions.dones.copy()
    ends[-1] = True
    lengths = np.diff(np.flatnonzero(ends), prepend=-1)
    length = card.episode_length
    yield from _contradiction("transitions", card.transitions, len(ends))
    yield from _contradiction("episodes", card.episodes, len(lengths))
    yield from _contradiction("episode_length.min", length.min, int(lengths.min()))
    yield from _contradiction("episode_length.max", length.max, int(lengths.max()))
    mean = float(lengths.mean())
    if abs(length.mean - mean) > _ROUNDING:
        yield from _contradiction("episode_length.mean", length.mean, round(mean, 2))


def _contradiction(field: str, stated: Any, actual: Any) -> Iterator[str]:
    if stated != actual:
        yield f"the card says `{field}` {reprlib.repr(stated)}, the file has {actual!r}"
