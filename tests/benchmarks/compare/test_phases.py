"""Times by phase, and randomness that measuring leaves alone."""

import random
import time

import numpy as np
import pytest
import torch as th

from benchmarks.compare.phases import Phases, undisturbed_randomness


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.now / 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class TestPhases:
    def test_a_phase_inside_another_one_is_charged_alone(self, clock: Clock) -> None:
        phases = Phases()
        clock.now += 100  # belongs to no phase
        with phases("training"):
            clock.now += 4
            with phases("curve"):
                clock.now += 10
            clock.now += 2
            with phases("curve"):
                clock.now += 1
        clock.now += 100
        assert phases.seconds == {"training": 6, "curve": 11}
        assert phases.cpu_seconds == {"training": 3, "curve": 5.5}

    def test_a_phase_that_fails_is_charged_and_left(self, clock: Clock) -> None:
        phases = Phases()

        def fail() -> None:
            with phases("training"):
                clock.now += 3
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        with phases("evaluation"):
            clock.now += 1
        assert phases.seconds == {"training": 3, "evaluation": 1}

    def test_work_done_elsewhere_adds_up(self, clock: Clock) -> None:
        phases = Phases()
        with phases("critic"):
            clock.now += 1
        phases.add("critic", 5, 4)
        assert phases.seconds == {"critic": 6}
        assert phases.cpu_seconds == {"critic": 4.5}


class TestUndisturbedRandomness:
    def test_the_next_draws_are_as_if_nothing_had_been_drawn(self) -> None:
        def draws() -> list[float]:
            return [random.random(), np.random.random(), float(th.rand(()))]  # noqa: NPY002

        def seed() -> None:
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            th.manual_seed(0)

        seed()
        expected = draws()
        seed()
        with undisturbed_randomness():
            assert draws() == expected
            draws()
        assert draws() == expected

    def test_states_are_put_back_after_an_error(self) -> None:
        th.manual_seed(3)
        expected = th.rand(2)
        th.manual_seed(3)

        def fail() -> None:
            with undisturbed_randomness():
                th.rand(1)
                raise ValueError("inside")

        with pytest.raises(ValueError, match="inside"):
            fail()
        assert th.equal(th.rand(2), expected)
