"""Other ways to imitate, behind one interface, to compare DiffusionBC with."""

from benchmarks.methods.base import FitRecord, Method, SamplingPolicy
from benchmarks.methods.diffusion_policy import DiffusionPolicy
from benchmarks.methods.implicit_bc import ImplicitBC

__all__ = ["DiffusionPolicy", "FitRecord", "ImplicitBC", "Method", "SamplingPolicy"]
