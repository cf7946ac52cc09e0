"""The runtime: modules that keep a matrix in its parts, so that some of them can change."""

from reallm_compiler.runtime.linear import TunedLinear
from reallm_compiler.runtime.tunable import TunableModel, open_tunable

__all__ = ["TunableModel", "TunedLinear", "open_tunable"]
