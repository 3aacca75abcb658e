"""What a trainer logs, and where to."""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch as th
from imitation.algorithms import bc
from imitation.util import logger as imit_logger
from stable_baselines3.common import logger as sb3_logger
from stable_baselines3.common import policies

from sb3_diffbc.losses import DiffusionBCMetrics, half_squared_norm


class DiffusionBCLogger(bc.BCLogger):
    """imitation's logger, with the terms of L_DM under ``dm/...``."""

    def __init__(
        self, logger: imit_logger.HierarchicalLogger, policy: policies.ActorCriticPolicy
    ) -> None:
        super().__init__(logger)
        self._policy = policy
        self.before_log: Callable[[], None] | None = None

    def log_batch(
        self,
        batch_num: int,
        batch_size: int,
        num_samples_so_far: int,
        training_metrics: DiffusionBCMetrics,  # type: ignore[override]
        rollout_stats: Mapping[str, float],
    ) -> None:
        """Records a batch as imitation does, filling in what is only computed when logged."""
        l2_norm = training_metrics.l2_norm
        if l2_norm is None:
            with th.no_grad():
                l2_norm = half_squared_norm(self._policy)
        if training_metrics.regression is not None:
            self._logger.record("bc/regression", float(training_metrics.regression.detach()))
        if training_metrics.dm is not None:
            for name, value in training_metrics.dm.summary().items():
                self._logger.record(f"dm/{name}", value)
        names = [field.name for field in dataclasses.fields(bc.BCTrainingMetrics)]
        values = {name: getattr(training_metrics, name) for name in names} | {"l2_norm": l2_norm}
        plain = bc.BCTrainingMetrics(
            **{k: None if v is None else v.detach() for k, v in values.items()}  # type: ignore[arg-type]
        )
        if self.before_log is not None:
            self.before_log()
        super().log_batch(batch_num, batch_size, num_samples_so_far, plain, rollout_stats)


class _LazyTensorBoard(sb3_logger.TensorBoardOutputFormat):
    """SB3's TensorBoard log, whose file and thread begin with the first record."""

    def __init__(self, folder: str) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError("tensorboard_log needs TensorBoard: pip install tensorboard")
        self._folder = folder
        self._is_closed = False

    @functools.cached_property
    def writer(self) -> Any:  # type: ignore[override]
        """The writer, whose thread ends with this object."""
        writer = sb3_logger.TensorBoardOutputFormat(self._folder).writer
        weakref.finalize(self, writer.close)
        return writer

    def close(self) -> None:
        """Closes the file, if there is one."""
        if "writer" in vars(self):
            super().close()


def make_logger(
    verbose: int,
    tensorboard_log: str | os.PathLike[str] | None,
    custom_logger: sb3_logger.Logger | None,
) -> imit_logger.HierarchicalLogger:
    """Returns the given logger, or one for the standard output and TensorBoard.

    Args:
        verbose: below 2 leaves out the standard output.
        tensorboard_log: folder for TensorBoard logs, made with the first record.
        custom_logger: excludes ``tensorboard_log``; SB3's own loggers are wrapped.

    Raises:
        ImportError: if TensorBoard is not installed and a folder is given.
        ValueError: if both a logger and a folder are given.
    """
    if custom_logger is not None:
        if tensorboard_log is not None:
            raise ValueError("Give custom_logger or tensorboard_log, not both.")
        if isinstance(custom_logger, imit_logger.HierarchicalLogger):
            return custom_logger
        return imit_logger.HierarchicalLogger(custom_logger)
    formats: dict[str, sb3_logger.KVWriter] = {}
    if verbose > 1:
        formats["stdout"] = sb3_logger.HumanOutputFormat(sys.stdout, max_length=50)
    folder = None if tensorboard_log is None else os.fspath(tensorboard_log)
    if folder is not None:
        formats["tensorboard"] = _LazyTensorBoard(folder)
    # imitation's configure would make a temporary folder where there is none.
    logger = sb3_logger.Logger(folder, list(formats.values()))
    return imit_logger.HierarchicalLogger(logger, list(formats))


@contextlib.contextmanager
def without_stdout(logger: imit_logger.HierarchicalLogger) -> Iterator[None]:
    """Keeps a logger from printing for a while; files and TensorBoard get all."""
    outputs = logger.default_logger.output_formats
    before = list(outputs)
    outputs[:] = [
        o for o in before if not isinstance(o, sb3_logger.HumanOutputFormat) or o.own_file
    ]
    try:
        yield
    finally:
        outputs[:] = before
