"""The command line of the measurements."""

import dataclasses
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import torch as th

from benchmarks.record import RESULTS, processor_name
from benchmarks.speed import page
from benchmarks.speed.against_release import measure_critic, measure_training
from benchmarks.speed.data_size import measure_data
from benchmarks.speed.settings import Settings
from benchmarks.speed.timing import Measurement
from benchmarks.speed.updates import (
    measure_actions,
    measure_monitor,
    measure_onnx,
    measure_scores,
    measure_updates,
)
from sb3_diffbc.checkpoints.file import package_versions
from sb3_diffbc.demonstrations import DemonstrationWarning

Part = Literal["updates", "actions", "onnx", "monitor", "scores", "critic", "training", "data"]
_MEASURE: dict[str, Callable[[Settings], list[Measurement]]] = {
    "updates": measure_updates,
    "actions": measure_actions,
    "onnx": measure_onnx,
    "monitor": measure_monitor,
    "scores": measure_scores,
    "critic": measure_critic,
    "training": measure_training,
    "data": measure_data,
}


@dataclasses.dataclass
class Speed(Settings):
    """Measures times and memory as ratios, and writes results/speed.csv and results/speed.md."""

    parts: tuple[Part, ...] = get_args(Part)
    """What to measure; other parts keep their rows. None only writes the page again."""
    results: Path = RESULTS
    """Folder to write to."""
    quick: bool = False
    """Take tiny sizes, which only show that everything runs, and a temporary folder."""

    def run(self) -> None:
        """Measures one part after the other; each is saved when it is done."""
        if self.quick:
            self.shrink()
            if self.results == RESULTS:
                self.results = Path(tempfile.mkdtemp())
        self.results.mkdir(parents=True, exist_ok=True)
        th.set_num_threads(self.threads)
        for part in self.parts:
            print(f"measuring: {part}", flush=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DemonstrationWarning)
                # imitation logs a loss that way at the start of every training.
                warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
                rows = pd.DataFrame(_MEASURE[part](self))
            self._save(rows.assign(run=self._description()))
        text = page.page(pd.read_csv(self._table))
        (self.results / "speed.md").write_text(text, encoding="utf-8")
        print(f"{self.results / 'speed.md'}\n\n{text}")

    @property
    def _table(self) -> Path:
        return self.results / "speed.csv"

    def _description(self) -> str:
        versions = package_versions("torch", "imitation", "stable-baselines3")
        named = ", ".join(" ".join(item) for item in versions.items())
        data = "the authors' demonstrations" if self.paper_data else "the bundled demonstrations"
        return f"{processor_name()}, {self.threads} threads, {named}, {data}"

    def _save(self, rows: pd.DataFrame) -> None:
        if self._table.is_file():
            known = pd.read_csv(self._table, float_precision="round_trip")
            rows = pd.concat([known[~known["part"].isin(rows["part"])], rows])
        rows.to_csv(self._table, index=False)
