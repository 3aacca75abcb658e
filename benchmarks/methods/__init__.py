"""The methods that are compared; a further one is one more module with its ``VARIANTS``."""

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.methods.base import Variant


def _variants() -> list[Variant]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__, f"{__name__}."))
    modules = [importlib.import_module(name) for name in names]
    found = [variant for module in modules for variant in getattr(module, "VARIANTS", ())]
    return sorted(found, key=lambda variant: variant.method.is_interactive)


METHODS: Mapping[str, Variant] = MappingProxyType({v.name: v for v in _variants()})
"""The compared methods by name, those that learn in the environment last."""

METHOD_TITLES: Mapping[str, str] = MappingProxyType({v.name: v.title for v in METHODS.values()})
"""Their names in tables and figures, in their order there."""
