"""Cells on a Ray cluster of two workers on this machine."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from comparing import DYING, line_task, make_cell, worker_killing

from benchmarks.compare.cells import run_cell
from benchmarks.compare.running import ClusterError, Outcome, run

cluster_utils = pytest.importorskip("ray.cluster_utils")
cluster = pytest.importorskip("benchmarks.compare.cluster")

TESTS = Path(__file__).parents[2]
TIMED = {"seconds", "cpu_seconds", "inference_ms", "peak_memory_mb"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two nodes with one processor each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))  # where the toys are
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        nodes.add_node(num_cpus=1)
        yield nodes.address
        nodes.shutdown()


@pytest.mark.slow
class TestCluster:
    def test_results_are_those_of_this_machine(self, address: str, tmp_path: Path) -> None:
        cells = [make_cell(tmp_path, "bc", seed=seed) for seed in (100, 101)]
        expected = {cell.seed: run_cell(cell) for cell in cells}
        outcomes = run(cells, -1, address)
        for outcome in outcomes:
            assert outcome.record is not None, outcome.error
            for name in expected[100].keys() - TIMED:
                assert outcome.record[name] == expected[outcome.cell.seed][name]

    def test_a_worker_that_dies_in_the_middle_of_a_cell_costs_nothing(
        self, address: str, tmp_path: Path
    ) -> None:
        marker = tmp_path / "killed"
        cells = [
            make_cell(tmp_path, worker_killing(marker)),
            *(make_cell(tmp_path, "bc", seed=seed) for seed in (100, 101, 102)),
        ]
        outcomes = list(run(cells, -1, address))
        assert marker.exists()
        assert _succeeded(outcomes) == {("gail", 100), ("bc", 100), ("bc", 101), ("bc", 102)}

    def test_a_cell_that_dies_is_told_and_does_not_stop_the_others(
        self, address: str, tmp_path: Path
    ) -> None:
        cells = [make_cell(tmp_path, method) for method in (DYING, "bc", "bc_paired")]
        outcomes = list(run(cells, -1, address))
        assert _succeeded(outcomes) == {("bc", 100), ("bc_paired", 100)}
        [died] = [outcome for outcome in outcomes if outcome.record is None]
        assert died.cell.method.key == "gail"
        assert "killed" in (died.error or "")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:no"])
def test_no_cluster_at_the_address_is_told_at_once(address: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"Ray at {address} cannot be reached"):
        list(run([make_cell(tmp_path)], -1, address))


class TestPortable:
    def test_demonstrations_travel_with_the_cell_unless_they_are_bundled(
        self, tmp_path: Path
    ) -> None:
        own = make_cell(tmp_path)
        bundled = make_cell(tmp_path, task=line_task(tmp_path, source="maze"))
        portable = list(cluster._portable([own, bundled]))
        Path(str(own.task.source)).unlink()
        assert len(portable[0].task.demonstrations()) == 200
        assert portable[1].task.source == "maze"
        assert dataclasses.replace(portable[1], cache=bundled.cache) == bundled


def _succeeded(outcomes: list[Outcome]) -> set[tuple[str, int]]:
    return {(o.cell.method.key, o.cell.seed) for o in outcomes if o.record is not None}
