"""The runtime: models from files, and modules that keep a matrix in its parts to change some."""

from reallm_compiler.runtime.linear import TunedLinear
from reallm_compiler.runtime.models import load
from reallm_compiler.runtime.opening import open_tunable
from reallm_compiler.runtime.tunable import TunableModel

__all__ = ["TunableModel", "TunedLinear", "load", "open_tunable"]
