"""``sb3-diffbc train``."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from imitation.util import logger as imit_logger

from sb3_diffbc.callbacks import TrainingCheckpoints
from sb3_diffbc.cli.options import KEYS, as_arguments, options
from sb3_diffbc.cli.run_folder import RunFolder, id_from_file, read_settings, report
from sb3_diffbc.demonstrations import load_demonstrations
from sb3_diffbc.diffusion_bc import DiffusionBC
from sb3_diffbc.logger import make_logger
from sb3_diffbc.schema import checked_arguments

_CONSTRUCTOR = options(
    DiffusionBC.__init__, DiffusionBC.__doc__, "demonstrations", "env", "tensorboard_log"
)
_TRAIN = options(
    DiffusionBC.train, DiffusionBC.train.__doc__, "log_rollouts_n_episodes", "reset_tensorboard"
)
_NAMES = {
    kind: [name for name, *_ in fields]
    for kind, fields in {"constructor": _CONSTRUCTOR, "train": _TRAIN}.items()
}


_FREE = ("device", "compile", "verbose")
"""Arguments of the constructor that may differ when a run goes on."""


@dataclasses.dataclass(kw_only=True)
class _Run:
    """The options of ``train`` that are not arguments of :class:`DiffusionBC`."""

    demonstrations: Annotated[str, tyro.conf.arg(aliases=["--demos"])]
    """A file, a folder or a bundled set's name."""
    env: str
    """Id of the environment."""
    obs_keys: Annotated[Any, KEYS] = None
    """Which observations, where the source names several: a name, a list to join, or a mapping."""
    action_key: str | None = None
    """The name of the actions, where it is an unusual one."""
    output: Path | None = None
    """The run's folder; by default a new one in runs/."""
    n_eval_episodes: int = 100
    """Episodes to score the policy on; 0 for none."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints of the training."""
    wandb_project: str | None = None
    """Also log to this project of Weights & Biases."""
    config: Path | None = None
    """A YAML file of settings, by the names of these options; options take precedence."""
    resume: Path | None = None
    """A run's folder to go on from; only the length of the training may differ."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def run(self) -> int:
        """Trains, saves and scores."""
        if self.n_eval_episodes < 0:
            raise ValueError(
                f"--n-eval-episodes: found {self.n_eval_episodes}, expected 0 or more."
            )
        checked_arguments(DiffusionBC.train, vars(self))  # before anything is written
        folder = RunFolder(self.resume or self.output or _new_path(self.env))
        if self.resume is None and folder.config.exists():
            raise ValueError(f"--output: {folder.path} holds a run; --resume goes on with it.")
        trainer = self._make_trainer(folder)
        folder.write_config(
            {
                name: value
                for name, value in vars(self).items()
                if name not in ("config", "resume", "output")
            }
        )
        self._train(trainer, folder)
        trainer.save(folder.trainer)
        trainer.save_policy(folder.policy)
        print(f"{trainer!r}: its policy is {folder.policy}")
        if self.n_eval_episodes:
            report(trainer.evaluate(self.n_eval_episodes), folder.results)
        return 0

    def _make_trainer(self, folder: RunFolder) -> DiffusionBC:
        if self.resume is None:
            # The logger comes last: wrong arguments should leave no run behind.
            arguments = {name: getattr(self, name) for name in _NAMES["constructor"]}
            trainer = DiffusionBC(demonstrations=self._load(), env=self.env, **arguments)
            trainer.logger = self._logger(folder)
            return trainer
        saved = read_settings(folder.config, vars(self))
        changed = [
            name
            for name in ("demonstrations", "obs_keys", "action_key", *_NAMES["constructor"])
            if name not in _FREE and getattr(self, name) != saved.get(name)
        ]
        if changed:
            raise ValueError(f"--resume: {', '.join(changed)} must be as in {folder.config}.")
        newest = TrainingCheckpoints.newest(folder.checkpoints)
        path = folder.trainer if folder.trainer.exists() else newest
        if path is None:
            raise ValueError(f"--resume: {folder.path} has no checkpoint yet; start it anew.")
        return DiffusionBC.load(
            path,
            demonstrations=self._load(),
            env=self.env,
            device=self.device,
            compile=self.compile,
            verbose=self.verbose,
            custom_logger=self._logger(folder),
        )

    def _load(self) -> Any:
        return load_demonstrations(
            self.demonstrations, obs_keys=self.obs_keys, action_key=self.action_key
        )

    def _train(self, trainer: DiffusionBC, folder: RunFolder) -> None:
        arguments = {name: getattr(self, name) for name in _NAMES["train"]}
        if self.n_epochs is not None:
            # The same updates, and countable across an interruption.
            arguments["n_epochs"] = None
            arguments["n_batches"] = trainer.updates_of(self.n_epochs)
        if arguments["n_batches"] is not None:
            arguments["n_batches"] -= trainer.n_updates
        elif folder.trainer.exists():
            arguments["n_batches"] = 0  # the default recipe has finished
        if arguments["n_batches"] is None or arguments["n_batches"] > 0:
            checkpoints = TrainingCheckpoints(
                folder.checkpoints, every_minutes=self.checkpoint_minutes
            )
            trainer.train(**arguments, callback=checkpoints)

    def _logger(self, folder: RunFolder) -> imit_logger.HierarchicalLogger:
        logger = make_logger(self.verbose, folder.path / "tensorboard", None)
        if self.wandb_project is not None:
            try:
                import wandb
            except ImportError as error:
                raise ImportError("--wandb-project needs wandb: pip install wandb") from error
            wandb.init(project=self.wandb_project, name=folder.path.name)
            logger.default_logger.output_formats.append(imit_logger.WandbOutputFormat())
        return logger


Train = dataclasses.make_dataclass(
    "Train",
    [*_CONSTRUCTOR, *_TRAIN],
    bases=(_Run,),
    kw_only=True,
    namespace={"__doc__": "Trains a policy on demonstrations; keeps it, its scores and its logs."},
)


def with_settings(arguments: list[str]) -> list[str]:
    """Puts the settings of ``--config``, or of a run that is resumed, before the options given.

    Args:
        arguments: options of ``train``.

    Returns:
        Options of ``train``; of two with one name, the later counts.

    Raises:
        OSError, ValueError: if the settings cannot be read.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--resume", "--env"):
        parser.add_argument(name)
    given, _ = parser.parse_known_args(arguments)
    if given.config is not None and given.resume is not None:
        raise ValueError("--config and --resume exclude each other: a run has its own settings.")
    if given.config is None and given.resume is None:
        return arguments
    path = Path(given.config) if given.config else RunFolder(Path(given.resume)).config
    settings = read_settings(path, {field.name for field in dataclasses.fields(Train)})
    if given.env is None and "env" in settings:
        id_from_file(settings["env"])
    return [*as_arguments(settings), *arguments]


def _new_path(env: str) -> Path:
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S-%f")
    return Path("runs") / f"{env.rpartition('/')[2]}-{now}"
