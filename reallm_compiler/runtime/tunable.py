"""A model whose coded matrices stay in their parts: what is tuned, and what adapters change.

    with the archive's coded parts decoded once,
    tunable.use("legal.reallm-adapter")     # other factors and gains, nothing decoded again
    tunable.use(None)                     # those of the archive itself

The model is an ordinary transformers model; the linear layers of coded matrices are
`TunedLinear`. Matrices that are no linear layer of their own (experts stacked in one tensor, a
coded embedding) are decoded whole and stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.checkpoint.architecture import meta_model
from reallm_compiler.errors import AdapterError, EvaluationError
from reallm_compiler.models.names import is_linear, modules_of
from reallm_compiler.progress import Progress
from reallm_compiler.reader.adapter import AdapterArchive, open_adapter
from reallm_compiler.reader.archive import ModelArchive, open_archive
from reallm_compiler.reader.huggingface import archive_files, build
from reallm_compiler.runs.devices import choose_device
from reallm_compiler.runtime.dtypes import resolve_dtype
from reallm_compiler.runtime.linear import TunedLinear


class TunableModel:
    """A model with `TunedLinear` layers. Use `open_tunable`.

    Attributes:
        model: the transformers model, in evaluation mode; every parameter is frozen but the
            factors and gains of its tuned layers.
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
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.layers = dict(layers)
        self.untuned = untuned
        self.base = base
        self.adapter: bytes | None = None
        self._own = {name: layer.parts() for name, layer in layers.items()}

    def __repr__(self) -> str:
        return f"TunableModel({type(self.model).__name__}, {len(self.layers)} tuned layers)"

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What tuning changes, as (`MATRIX/part`, parameter), in storage order."""
        for name, layer in self.layers.items():
            for part, value in layer.tuned():
                yield f"{name}/{part}", value

    def use(self, adapter: str | os.PathLike[str] | AdapterArchive | None) -> None:
        """Put an adapter's factors and gains in; None puts back those of the archive.

        Matrices that the adapter does not hold get the archive's own parts.

        Raises:
            AdapterError: the adapter belongs to another base, or to matrices that this model
                has not.
            FormatError: the adapter is damaged.
        """
        if adapter is None:
            for name, layer in self.layers.items():
                _set(layer, self._own[name])
            self.adapter = None
            return
        if not isinstance(adapter, AdapterArchive):
            with open_adapter(adapter) as opened:
                self.use(opened)
            return
        adapter.check_base(self.base)
        strange = [name for name in adapter.names if name not in self.layers]
        if strange:
            raise AdapterError(
                f"the adapter holds {strange[0]}, which is not a tuned layer of this model",
                location=str(adapter.path),
            )
        parts = {name: adapter.parts(name) for name in adapter.names}
        for name, layer in self.layers.items():
            _set(layer, parts.get(name, self._own[name]))
        self.adapter = adapter.digest

    def forget_own(self) -> None:
        """Give the memory of the archive's own parts back; `use` works no more."""
        self._own = {}


def open_tunable(
    path: str | os.PathLike[str] | ModelArchive,
    *,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    progress: Progress = False,
) -> TunableModel:
    """The model of an archive with its coded matrices in their parts.

    Args:
        path: the archive, or an open one.
        adapter: an adapter to start with.
        decoder: where the trained decoders are that the archive uses but does not hold: a file, or
            a folder; beside the archive when None. An open archive knows it already.
        allow_cost: decode it whatever its plan costs to decode; see `open_archive`.
        device: where the model will run, as for `load`.
        dtype: type of everything but factors and gains, as for `load`; the checkpoint's own
            when None.
        progress: as for `load`.

    Raises:
        EvaluationError: the device is not there, or the type is none to run in.
        SourceError: the archive holds matrices without a config, or its decoder is not there.
        FormatError: the archive, the adapter or the decoder is damaged.
        AdapterError: the adapter belongs to another base.
    """
    device, dtype = choose_device(device, EvaluationError), resolve_dtype(dtype)
    if not isinstance(path, ModelArchive):
        with open_archive(path, decoder=decoder, allow_cost=allow_cost) as archive:
            return open_tunable(
                archive, adapter=adapter, device=device, dtype=dtype, progress=progress
            )
    paths = _linear_layers(path)
    linear = [matrix for matrix in path.plan.matrices if matrix.name in paths]
    coded_only = {matrix.tensor for matrix in linear}
    model, tokenizer = build(path, dtype=dtype, coded_only=coded_only, progress=progress)
    model.requires_grad_(False)
    layers: dict[str, TunedLinear] = {}
    for matrix in linear:
        module = model.get_submodule(paths[matrix.name][0])
        left, right = path.factors(matrix.name) or (None, None)
        layers[matrix.name] = TunedLinear(
            module.weight.t() if matrix.transposed else module.weight,
            left=left,
            right=right,
            gain=path.gain(matrix.name),
            bias=module.bias,
        )
        for target in paths[matrix.name]:
            model.set_submodule(target, layers[matrix.name])
    model.to(device).eval()
    untuned = tuple(name for name in path.names if name not in layers)
    tunable = TunableModel(model, tokenizer, layers, untuned, path.digest)
    if adapter is not None:
        tunable.use(adapter)
    return tunable


def empty_model(archive: ModelArchive) -> Any:  # noqa: ANN401 (transformers has no types)
    """The model of an archive without weights, to ask it for its names and layers.

    Raises:
        SourceError: the archive holds no config, or transformers has no such model.
    """
    return meta_model(archive_files(archive).config, str(archive.path))


def _linear_layers(archive: ModelArchive) -> dict[str, tuple[str, ...]]:
    """The linear layers of the coded matrices that are the weight of some, by matrix name.

    A weight that an embedding shares, or that layers with biases of their own share, has none.
    """
    empty = empty_model(archive)
    found = {}
    for name, paths in modules_of(empty, archive.plan.matrices).items():
        modules = [empty.get_submodule(path) for path in paths]
        if all(map(is_linear, modules)) and len({id(module.bias) for module in modules}) == 1:
            found[name] = paths
    return found


def _set(layer: TunedLinear, parts: Mapping[str, Tensor]) -> None:
    layer.set_parts(parts.get("l1"), parts.get("l2"), parts.get("gain"))
