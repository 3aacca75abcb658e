"""``sb3-diffbc demos``: lists, describes and checks demonstrations."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from typing import Annotated, Any, Literal

import tyro

from sb3_diffbc.cli.options import KEYS
from sb3_diffbc.demonstrations import (
    DemonstrationWarning,
    bundled_names,
    check_card,
    load_demonstrations,
    read_card,
    validate_demonstrations,
)
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.demonstrations.validation import by_key
from sb3_diffbc.envs import make_env

_MAX_SHOWN = 256
"""Entries of an array whose statistics are shown; images have more."""


@dataclasses.dataclass
class Demos:
    """Lists the bundled demonstrations; describes or checks demonstrations of any kind."""

    action: tyro.conf.Positional[Literal["list", "describe", "check"]]
    """list the bundled sets; describe a source; check one, or all bundled sets if none is given."""
    source: tyro.conf.Positional[str | None] = None
    """A file, a folder or a bundled set's name."""
    obs_keys: Annotated[Any, KEYS] = None
    """Which observations, where the source names several: a name, a list to join, or a mapping."""
    action_key: str | None = None
    """The name of the actions, where it is an unusual one."""
    env: str | None = None
    """For check: id of the environment whose spaces the demonstrations must fit."""

    def run(self) -> int:
        """Returns 0, or 1 where a check finds something."""
        if self.action == "list":
            _print_list()
        elif self.action == "describe":
            if self.source is None:
                raise ValueError("source is missing: expected a file or a bundled set's name.")
            self._describe(self.source)
        else:
            sources = bundled_names() if self.source is None else (self.source,)
            n_sound = sum(self._is_sound(source) for source in sources)
            return 0 if n_sound == len(sources) else 1
        return 0

    def _load(self, source: str) -> Any:
        return load_demonstrations(source, obs_keys=self.obs_keys, action_key=self.action_key)

    def _describe(self, source: str) -> None:
        transitions = self._load(source)
        lengths = lengths_of(transitions.dones)
        print(
            f"{source}: {len(transitions):,} transitions in {len(lengths):,} trajectories of "
            f"{lengths.min():,} to {lengths.max():,} steps"
        )
        named = {key or "observations": array for key, array in by_key(transitions.obs).items()}
        for name, array in (*named.items(), ("actions", transitions.acts)):
            print(f"{name}: {array.dtype}, shape {array.shape[1:]}")
            columns = array.reshape(len(array), -1).T
            for i, column in enumerate(columns if len(columns) <= _MAX_SHOWN else ()):
                print(
                    f"  {i:3}: {column.min():10.4g} to {column.max():10.4g}, mean "
                    f"{column.mean():10.4g}, standard deviation {column.std():10.4g}"
                )

    def _is_sound(self, source: str) -> bool:
        """Prints what is wrong with demonstrations, and tells whether nothing is."""
        findings = check_card(source) if source in bundled_names() else []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DemonstrationWarning)
            transitions = self._load(source)
            if self.env is not None:
                env = make_env(self.env)
                validate_demonstrations(
                    transitions,
                    observation_space=env.observation_space,
                    action_space=env.action_space,
                )
        notes = [str(w.message) for w in caught if issubclass(w.category, DemonstrationWarning)]
        for text in [*findings, *(f"warning: {note}" for note in notes)]:
            print(f"{source}: {text}", file=sys.stderr)
        if not findings:
            fits = "" if self.env is None else f" and fit {self.env}"
            print(f"{source}: {len(transitions):,} transitions are sound{fits}")
        return not findings


def _print_list() -> None:
    for name in bundled_names():
        card = read_card(name)
        print(
            f"{name:12} {card.env_id:25} {card.episodes:5,} episodes {card.transitions:7,} steps  "
            f"{card.score.metric} {card.score.mean:.4g}  {card.expert}"
        )
