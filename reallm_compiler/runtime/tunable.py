"""A model whose coded matrices stay in their parts: what is tuned, and what adapters change.

    with the archive's coded parts decoded once,
    tunable.use("legal.reallm-adapter")   # other factors and gains, nothing decoded again
    tunable.use(None)                     # those of the archive itself

`learn` says what of it is to be tuned: factors and gains by default. Scales and tables that are
learned are decoded anew in each pass, norms and biases take their values from what is learned.

The model is an ordinary transformers model; the linear layers of coded matrices are
`TunedLinear`. Matrices that are no linear layer of their own (experts stacked in one tensor, a
coded embedding) are decoded whole and stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.errors import AdapterError
from reallm_compiler.reader.adapter import AdapterArchive, open_adapter
from reallm_compiler.recipe.tuning import DEFAULT_LEARN, Learn
from reallm_compiler.runtime.learned import LearnedSection
from reallm_compiler.runtime.linear import TunedLinear

_LEARNED_BY: dict[str, frozenset[Learn]] = {
    "l1": frozenset({"factors"}),
    "l2": frozenset({"factors"}),
    "magnitude": frozenset({"gains", "rows"}),
    "column_gain": frozenset({"columns"}),
}
"""What of a layer is tuned under which words."""


class TunableModel:
    """A model with `TunedLinear` layers. Use `open_tunable`.

    Attributes:
        model: the transformers model, in evaluation mode; every parameter is frozen but the
            factors and gains of its tuned layers.
        learn: what `parameters` gives.
        learned: sections that are learned, by name in the archive.
        replaced: sections that the adapter replaced with which the model was opened.
        tokenizer: its tokenizer, or None.
        layers: the tuned layers by matrix name, in storage order.
        untuned: coded matrices that are no linear layer of their own.
        base: digest of the archive.
        adapter: digest of the adapter in use; None for the archive's own parts.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 (transformers has no types)
        tokenizer: Any,  # noqa: ANN401
        layers: Mapping[str, TunedLinear],
        untuned: tuple[str, ...],
        base: bytes,
        learn: Collection[Learn] = DEFAULT_LEARN,
        learned: Mapping[str, LearnedSection] = MappingProxyType({}),
        replaced: frozenset[str] = frozenset(),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.layers = dict(layers)
        self.untuned = untuned
        self.base = base
        self.learn = frozenset(learn)
        self.learned = dict(learned)
        self.replaced = replaced
        self.adapter: bytes | None = None
        self._own = {name: layer.parts() for name, layer in layers.items()}

    def __repr__(self) -> str:
        return f"TunableModel({type(self.model).__name__}, {len(self.layers)} tuned layers)"

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What tuning changes, as (`MATRIX/part`, parameter), in storage order."""
        for name, layer in self.layers.items():
            yield from self._parts_of(name, layer)
        for name, one in self.learned.items():
            yield name, one.theta

    def parameters_in(self, path: str, layers: Collection[str]) -> dict[str, nn.Parameter]:
        """What tuning changes in a module and nowhere else, by name.

        Args:
            path: of the module in the model, such as `model.layers.3`.
            layers: names of its matrices.
        """
        found: dict[str, nn.Parameter] = {}
        for name in layers:
            found.update(self._parts_of(name, self.layers[name]))
        for name, one in self.learned.items():
            inside = one.module is not None and one.module.startswith(f"{path}.")
            if inside or one.section.owner in layers:
                found[name] = one.theta
        return found

    def _parts_of(self, name: str, layer: TunedLinear) -> Iterator[tuple[str, nn.Parameter]]:
        for part, value in layer.tuned():
            if self.learn & _LEARNED_BY[part]:
                yield f"{name}/{part}", value

    def use(self, adapter: str | os.PathLike[str] | AdapterArchive | None) -> None:
        """Put an adapter's factors and gains in; None puts back those of the archive.

        Matrices that the adapter does not hold get the archive's own parts.

        Raises:
            AdapterError: the adapter belongs to another base, or to matrices that this model
                has not; or it, or the one with which the model was opened, replaces scales or
                other numbers of the archive, so that matrices would have to be decoded again.
            FormatError: the adapter is damaged.
        """
        if self.replaced and adapter is None:
            raise _decoded_anew("the adapter with which this model was opened", None)
        if adapter is None:
            for name, layer in self.layers.items():
                self._set(layer, self._own[name])
            self.adapter = None
            return
        if not isinstance(adapter, AdapterArchive):
            with open_adapter(adapter) as opened:
                self.use(opened)
            return
        adapter.check_base(self.base)
        if adapter.digest != self.adapter and (adapter.replaced or self.replaced):
            raise _decoded_anew("this adapter, or the one in use,", str(adapter.path))
        strange = [name for name in adapter.names if name not in self.layers]
        if strange:
            raise AdapterError(
                f"the adapter holds {strange[0]}, which is not a tuned layer of this model",
                location=str(adapter.path),
            )
        parts = {name: adapter.parts(name) for name in adapter.names}
        for name, layer in self.layers.items():
            self._set(layer, parts.get(name, self._own[name]))
        self.adapter = adapter.digest

    def _set(self, layer: TunedLinear, parts: Mapping[str, Tensor]) -> None:
        """Replace the parts of a layer; gains that are learned begin at 1 where there are none."""
        given = dict(parts)
        for word, part, count in (
            ("rows", "gain", layer.out_features),
            ("columns", "column_gain", layer.in_features),
        ):
            if word in self.learn:
                given.setdefault(part, torch.ones(count))
        layer.set_parts(*(given.get(part) for part in ("l1", "l2", "gain", "column_gain")))

    def forget_own(self) -> None:
        """Give the memory of the archive's own parts back; `use` works no more."""
        self._own = {}


def _decoded_anew(what: str, location: str | None) -> AdapterError:
    return AdapterError(
        f"{what} replaces scales, tables or norms, which an open model cannot switch",
        location=location,
        hint="open the model again with `open_tunable(PATH, adapter=...)`",
    )
