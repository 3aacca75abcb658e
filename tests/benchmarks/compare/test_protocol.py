"""Constants of the comparison."""

import dataclasses
import json

import pytest

from benchmarks.compare.protocol import QUICK, Protocol
from sb3_diffbc import DiffusionBC


class TestProtocol:
    def test_offline_methods_make_as_many_updates_as_diffusion_bc(self) -> None:
        assert Protocol().updates == DiffusionBC.DEFAULT_N_BATCHES

    def test_can_be_written_as_json(self) -> None:
        fields = dataclasses.asdict(Protocol())
        assert json.loads(json.dumps(fields)) == fields

    def test_training_seeds_and_episodes_differ_from_those_of_the_curve_and_the_tuning(
        self,
    ) -> None:
        protocol = Protocol()
        final = range(protocol.first_episode_seed, protocol.n_episodes)
        for n in protocol.curve_episodes.values():
            curve = range(protocol.first_curve_episode_seed, protocol.first_curve_episode_seed + n)
            assert not set(final) & set(curve)
            assert max(curve) < 1_000_000  # where the search for defaults began
        assert protocol.first_seed >= 100

    @pytest.mark.parametrize("length", [10, 20_000, 97, 12_345])
    def test_checkpoints_are_spread_evenly_and_end_with_training(self, length: int) -> None:
        checkpoints = sorted(Protocol().checkpoints(length))
        assert len(checkpoints) == 10
        assert checkpoints[-1] == length
        gaps = [b - a for a, b in zip([0, *checkpoints], checkpoints, strict=False)]
        assert max(gaps) - min(gaps) <= 1

    def test_a_short_training_has_a_checkpoint_after_each_unit(self) -> None:
        assert Protocol().checkpoints(3) == {1, 2, 3}

    def test_quick_sizes_change_nothing_but_sizes(self) -> None:
        assert QUICK.first_seed == Protocol().first_seed
        assert QUICK.first_episode_seed == Protocol().first_episode_seed
        assert QUICK.first_curve_episode_seed == Protocol().first_curve_episode_seed
