"""The record of one training run: the one format of the comparison and of all studies.

A *cell* is a problem, a variant (a method with its settings) and a training seed; a *suite* is a
set of cells. While a suite runs, each finished cell is a JSON file at
``runs/<suite>/<task>/<variant>/<seed>.json``; :func:`gather` turns them into one table,
``benchmarks/results/<suite>.parquet``, with one row for each record.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Literal, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, JsonValue, model_validator
from typing_extensions import Self

from sb3_diffbc.schema import Model, NonNegativeFloat, NonNegativeInt, Number, parse_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "runs"

JsonObject: TypeAlias = dict[str, JsonValue]
Key: TypeAlias = tuple[str, str, int]


class Demonstrations(Model):
    """What was imitated.

    Attributes:
        source: name of a bundled set, or of a file (without its folder).
        sha256: fingerprint of the arrays, see ``sb3_diffbc.demonstrations``.
        transitions: number of transitions.
        episodes: number of episodes; an incomplete last one counts.
    """

    source: str
    sha256: str
    transitions: NonNegativeInt
    episodes: NonNegativeInt


class Checkpoint(Model):
    """An entry of a learning curve.

    Attributes:
        updates: gradient updates of the policy so far.
        env_steps: environment steps of training so far.
        score: mean over the episodes.
        episodes: how many were played.
    """

    updates: NonNegativeInt
    env_steps: NonNegativeInt
    score: Number
    episodes: NonNegativeInt


class Record(Model):
    """The result of one cell.

    Attributes:
        suite: the suite's name.
        task: the problem's key, for instance ``"maze"`` or ``"maze-paper"``.
        variant: the method, or the name of its settings.
        seed: of training.
        title: the problem's title in tables.
        env: Gymnasium's id.
        noise_ratio: of the start in the evaluation, and of the goal where they are not told apart.
        metric: what a score is.
        demonstrations: what was imitated.
        config: every setting, the same for all seeds.
        scores: one per episode of the final evaluation: its return, or 1 for success and 0 for
            failure. The committed diagnosis kept the mean alone: its records have one score.
        first_episode_seed: of the final evaluation; the resets count up from it.
        curve: the learning curve, in the order of training.
        measures: numbers by name, ``"group/name"`` where they belong together:
            ``"seconds/training"``, ``"cpu_seconds/critic"``, ``"inference_ms"``, ``"updates"``.
            ``"score/name"`` is the mean score of a further policy, or in a further environment,
            over as many episodes as there are scores, from the same seeds.
        command: how to run it again.
        git_revision: of the code; None if it is not known.
        git_dirty: whether the code had changes that are not in the revision; None likewise.
        versions: of Python and of the packages that results depend on.
        machine: the processor, its number of cores, and the threads per cell.
    """

    suite: str = Field(pattern=r"^\w[\w.+-]*$")
    task: str = Field(pattern=r"^\w[\w.+@-]*$")
    variant: str = Field(min_length=1)
    seed: NonNegativeInt
    title: str
    env: str
    noise_ratio: NonNegativeFloat
    metric: Literal["success", "return"]
    demonstrations: Demonstrations
    config: JsonObject
    scores: list[Number] = Field(min_length=1)
    first_episode_seed: NonNegativeInt
    curve: list[Checkpoint]
    measures: dict[str, Number]
    command: str
    git_revision: str | None
    git_dirty: bool | None
    versions: dict[str, str]
    machine: JsonObject

    @model_validator(mode="after")
    def _success_is_a_share(self) -> Self:
        if self.metric == "success" and not all(0 <= score <= 1 for score in self.scores):
            raise ValueError("scores of metric 'success' must lie between 0 and 1")
        return self

    @property
    def key(self) -> Key:
        """Which cell of its suite this is: task, variant and seed."""
        return self.task, self.variant, self.seed


_JSON_COLUMNS = ("config", "versions", "machine")
"""Objects of any content, which the table has as JSON texts."""


def record_path(folder: Path, task: str, variant: str, seed: int) -> Path:
    """Returns where a cell's record lies in the folder of a running suite."""
    slug = re.sub(r"[^\w.=+-]+", "_", variant.replace(" x ", "x")).strip("_.") or "_"
    return folder / task / slug / f"{seed}.json"


def write_record(record: Record, folder: Path) -> Path:
    """Writes a record into the folder of a running suite, in one piece; returns its path."""
    path = record_path(folder, *record.key)
    with _in_one_piece(path) as temporary:
        temporary.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path


@contextlib.contextmanager
def _in_one_piece(path: Path) -> Iterator[Path]:
    """Gives a file of the writer's own, which then takes the path's place; or nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_record(path: Path) -> Record:
    """Reads the record of a finished cell.

    Raises:
        ValueError: if the file cannot be read or is no record.
    """
    try:
        return parse_json(Record, path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def read_folder(folder: Path) -> tuple[dict[Key, Record], list[str]]:
    """Reads the records of a running suite.

    Args:
        folder: with one file per cell; need not exist.

    Returns:
        The records by cell, and one sentence for each file that is no record.
    """
    records, problems = {}, []
    for path in sorted(folder.glob("*/*/*.json")):
        try:
            record = read_record(path)
        except ValueError as error:
            problems.append(str(error))
        else:
            records[record.key] = record
    return records, problems


def write_table(records: Iterable[Record], path: Path) -> None:
    """Writes records as one Parquet table, in the order of task, variant and seed."""
    rows = [record.model_dump() for record in sorted(records, key=lambda record: record.key)]
    for row in rows:
        row |= {name: json.dumps(row[name], sort_keys=True) for name in _JSON_COLUMNS}
    with _in_one_piece(path) as temporary:
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, temporary, compression="zstd", compression_level=19)


def read_table(path: Path) -> dict[Key, Record]:
    """Reads the records of a Parquet table by cell; there are none where there is no file.

    Raises:
        ValueError: if the file is no table of records.
    """
    if not path.is_file():
        return {}
    try:
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row |= {name: json.loads(row[name]) for name in _JSON_COLUMNS}
            # The column has a field for every measure that any record has.
            measures = row["measures"].items()
            row["measures"] = {name: value for name, value in measures if value is not None}
    except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    found = parse_json(list[Record], json.dumps(rows), str(path))
    return {record.key: record for record in found}


def gather(suite: str) -> Path:
    """Puts the records of finished cells into the suite's table; their files stay.

    Args:
        suite: the suite's name.

    Returns:
        The table's path.

    Raises:
        ValueError: if a cell's file or the table is damaged, or there are no records; nothing is
            written then.
    """
    path = RESULTS / f"{suite}.parquet"
    finished, problems = read_folder(RUNS / suite)
    if problems:
        raise ValueError("; ".join(problems))
    records = read_table(path) | finished
    if not records:
        raise ValueError(f"{suite}: found no finished cells in {RUNS / suite}.")
    write_table(records.values(), path)
    return path


def read_suite(source: str | Path) -> pd.DataFrame:
    """Reads all results of a suite: its table, and the finished cells of a run that is going on.

    Where both have a cell, the file of the run takes precedence. Files that are damaged are
    named on the standard error and left out.

    Args:
        source: a suite's name; or the path of one table or of one folder of cells.

    Returns:
        One row for each record in the order of task, variant and seed. The columns are the
        fields of :class:`Record` (``demonstrations``, ``config``, ``measures``, ``versions`` and
        ``machine`` hold dicts, ``scores`` and ``curve`` lists), ``score`` (mean of ``scores``)
        and ``n_episodes`` (their number).

    Raises:
        ValueError: if the table is damaged.
    """
    table, folder = (
        (RESULTS / f"{source}.parquet", RUNS / source)
        if isinstance(source, str)
        else (source, source)
    )
    finished, problems = read_folder(folder)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    records = read_table(table) | finished
    rows = [records[key].model_dump() for key in sorted(records)]
    for row in rows:
        row |= {"score": fmean(row["scores"]), "n_episodes": len(row["scores"])}
    return pd.DataFrame(rows, columns=[*Record.model_fields, "score", "n_episodes"])


def processor_name() -> str:
    """Returns the processor's name where the system tells it, its architecture otherwise."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
