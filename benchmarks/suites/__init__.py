"""The suites of experiments; a further study is one more module with its ``SUITE``."""

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.suites.base import Suite


def _suites() -> list[Suite]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__, f"{__name__}."))
    modules = [importlib.import_module(name) for name in names]
    return [module.SUITE for module in modules if hasattr(module, "SUITE")]


SUITES: Mapping[str, Suite] = MappingProxyType({suite.name: suite for suite in _suites()})
"""The suites by name."""
