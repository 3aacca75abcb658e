"""The suites of experiments; a further one is one more module with its ``SUITE``."""

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.suites.base import Suite


def _suites() -> list[Suite]:
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(__path__, f"{__name__}.")
    ]
    return [
        suite for module in modules for suite in vars(module).values() if isinstance(suite, Suite)
    ]


SUITES: Mapping[str, Suite] = MappingProxyType({suite.name: suite for suite in _suites()})
"""The suites by name."""
