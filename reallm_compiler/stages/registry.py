"""Which kinds each stage of a matrix plan has.

A kind is known by its parameters, a model with a `kind`. The kinds of this package are listed in
`KINDS`; an installed package adds its own by an entry point of the group `reallm.stages`, which
names an `ExternalKind`. What a kind stores is its size law (`reallm_compiler.storage`), what it
does to weights its codec (`reallm_compiler.codecs`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from reallm_compiler.errors import RegistryError
from reallm_compiler.stages.autoencoder import Hnerv, Identity
from reallm_compiler.stages.base import Stage
from reallm_compiler.stages.permutation import (
    ActOrderPermutation,
    NearestPermutation,
    NoPermutation,
    NormSortedPermutation,
)
from reallm_compiler.stages.quantizer import (
    AdditiveQuantizer,
    E8PQuantizer,
    NoQuantizer,
    NormalFloatQuantizer,
    TrellisQuantizer,
    UniformQuantizer,
    VectorQuantizer,
)
from reallm_compiler.stages.residual import LowRank, Monarch, NoResidual, Sparse
from reallm_compiler.stages.rounding import FeedbackRounding, NearestRounding
from reallm_compiler.stages.scales import (
    AbsmaxScales,
    AffineScales,
    MinmaxScales,
    NoScales,
    RmsScales,
)
from reallm_compiler.stages.transform import ChannelScale, Hadamard, Normalize

GROUP = "reallm.stages"
"""Entry points of other packages that add kinds."""

KINDS: Mapping[str, tuple[type[Stage], ...]] = {
    "residual": (NoResidual, LowRank, Sparse, Monarch),
    "transform": (Normalize, Hadamard, ChannelScale),
    "autoencoder": (Identity, Hnerv),
    "permutation": (
        NoPermutation,
        NearestPermutation,
        NormSortedPermutation,
        ActOrderPermutation,
    ),
    "scales": (NoScales, RmsScales, AbsmaxScales, MinmaxScales, AffineScales),
    "quantizer": (
        NoQuantizer,
        UniformQuantizer,
        NormalFloatQuantizer,
        VectorQuantizer,
        AdditiveQuantizer,
        E8PQuantizer,
        TrellisQuantizer,
    ),
    "rounding": (NearestRounding, FeedbackRounding),
}
"""The stages of a matrix plan, in the order of the plan, and the kinds of this package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExternalKind:
    """A kind of another package.

    Attributes:
        stage: the stage that it belongs to, a key of `KINDS`.
        params: its parameters, a subclass of that stage's base in `reallm_compiler.stages`.
        size_law: where its size law is, as `module:attribute`; imported when a size is asked for.
        codec: where its codec is, likewise; imported when weights are coded or decoded.
    """

    stage: str
    params: type[Stage]
    size_law: str
    codec: str

    def __post_init__(self) -> None:
        if self.stage not in KINDS:
            raise RegistryError(
                f"there is no stage {self.stage!r}", hint=f"stages are {', '.join(KINDS)}"
            )


_registered: list[ExternalKind] = []


def register(kind: ExternalKind) -> None:
    """Adds a kind to this process, as an entry point does for every process.

    Raises:
        RegistryError: the stage has a kind of that name already.
    """
    external()  # a kind of an installed package comes first
    _add(kind)
    kinds.cache_clear()


def unregister(kind: ExternalKind) -> None:
    """Takes back what `register` added."""
    _registered.remove(kind)
    kinds.cache_clear()


@cache
def kinds(stage: str) -> Mapping[str, type[Stage]]:
    """The kinds of a stage by name, those of this package first."""
    found = [*KINDS[stage], *(kind.params for kind in external() if kind.stage == stage)]
    return {kind_name(params): params for params in found}


def external() -> list[ExternalKind]:
    """The kinds of other packages."""
    _load_entry_points()
    return _registered


@cache
def _load_entry_points() -> None:
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        kind = entry.load()
        if not isinstance(kind, ExternalKind):
            raise RegistryError(
                f"the entry point {entry.name!r} of group {GROUP!r} is not an ExternalKind",
                location=entry.value,
                hint="uninstall the package that brings it, or upgrade it",
            )
        _add(kind)


def _add(kind: ExternalKind) -> None:
    name = kind_name(kind.params)
    known = [*KINDS[kind.stage], *(one.params for one in _registered if one.stage == kind.stage)]
    if name in map(kind_name, known):
        raise RegistryError(f"the stage {kind.stage!r} has a kind {name!r} already")
    _registered.append(kind)


def kind_name(params: type[Stage]) -> str:
    """The value of `kind` that selects a model of parameters."""
    (name,) = params.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
    return str(name)


def implementation(params: type[Stage], built_in: Mapping[type[Stage], Any], part: str) -> Any:  # noqa: ANN401
    """The size law or the codec of a kind.

    Args:
        params: the kind.
        built_in: those of this package.
        part: `size_law` or `codec`, where an `ExternalKind` says that its own is.

    Raises:
        RegistryError: the kind has none.
    """
    if params in built_in:
        return built_in[params]
    for kind in external():
        if kind.params is params:
            module, _, attribute = getattr(kind, part).partition(":")
            return getattr(importlib.import_module(module), attribute)
    raise RegistryError(f"the kind {kind_name(params)!r} has no `{part}`")


def check_complete(built_in: Mapping[type[Stage], Any], part: str) -> None:
    """Refuses a table of size laws or codecs in which a kind of this package is missing.

    Raises:
        RegistryError: with the kinds that lack one.
    """
    missing = [kind_name(one) for stage in KINDS.values() for one in stage if one not in built_in]
    if missing:
        raise RegistryError(f"kinds without a {part}: {', '.join(missing)}")
