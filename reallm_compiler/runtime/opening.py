"""Opening an archive as a model whose parts can be tuned and switched (`tunable.TunableModel`)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import torch

from reallm_compiler.checkpoint.architecture import meta_model
from reallm_compiler.errors import EvaluationError
from reallm_compiler.models.build import build_model
from reallm_compiler.models.names import is_linear, modules_of, parameter_names
from reallm_compiler.models.tokenizer import load_tokenizer
from reallm_compiler.planning.learnable import learnable_sections, sections_of
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.progress import Progress
from reallm_compiler.reader.adapter import open_adapter
from reallm_compiler.reader.archive import ModelArchive, open_archive
from reallm_compiler.reader.huggingface import archive_files
from reallm_compiler.recipe.tuning import DEFAULT_LEARN, Learn
from reallm_compiler.runs.devices import choose_device
from reallm_compiler.runtime.dtypes import resolve_dtype
from reallm_compiler.runtime.learned import LearnedSection, TrackedMatrix, learn_parameter
from reallm_compiler.runtime.linear import TunedLinear
from reallm_compiler.runtime.mapped import Mode, check_mode, packed_files
from reallm_compiler.runtime.tunable import TunableModel


def open_tunable(
    path: str | os.PathLike[str] | ModelArchive,
    *,
    mode: Mode = "dense",
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    progress: Progress | None = None,
    learn: Collection[Learn] = DEFAULT_LEARN,
) -> TunableModel:
    """The model of an archive with its coded matrices in their parts.

    Args:
        path: the archive, or an open one.
        mode: `dense` decodes the coded parts once; `packed` leaves them as they are stored, so that
            the model takes the memory of the file, and computes from the codes. An open archive
            must have been opened with `private=True` for that.
        adapter: an adapter to start with.
        decoder: where the trained decoders are that the archive uses but does not hold: a file, or
            a folder; beside the archive when None. An open archive knows it already.
        allow_cost: decode it whatever its plan costs to decode; see `open_archive`.
        device: where the model will run, as for `load`.
        dtype: type of everything but factors and gains, as for `load`; the checkpoint's own
            when None.
        progress: as for `load`.
        learn: what is to be tuned: `factors` and `gains` that are there, `scales`, `tables`
            (codebooks), `norms`, `biases`, and `rows` and `columns`: a gain for each where there is
            none.

    Raises:
        EvaluationError: the device is not there, or the type is none to run in.
        SourceError: the archive holds matrices without a config, or its decoder is not there.
        FormatError: the archive, the adapter or the decoder is damaged.
        AdapterError: the adapter belongs to another base.
    """
    device, dtype = choose_device(device, EvaluationError), resolve_dtype(dtype)
    check_mode(mode)
    if not isinstance(path, ModelArchive):
        private = mode == "packed"
        with open_archive(path, decoder=decoder, allow_cost=allow_cost, private=private) as archive:
            return open_tunable(
                archive,
                mode=mode,
                adapter=adapter,
                device=device,
                dtype=dtype,
                progress=progress,
                learn=learn,
            )
    if adapter is not None:
        before = path.adapter
        with open_adapter(adapter) as opened:
            path.use(opened)
            try:
                return open_tunable(
                    path, mode=mode, device=device, dtype=dtype, progress=progress, learn=learn
                )
            finally:
                path.use(before)
    tunable = _opened(path, mode, device, dtype, progress, learn)
    if path.adapter is not None:
        tunable.use(path.adapter)
    return tunable


def _opened(
    path: ModelArchive,
    mode: Mode,
    device: torch.device,
    dtype: torch.dtype | None,
    progress: Progress | None,
    learn: Collection[Learn],
) -> TunableModel:
    """The model of an archive, or of the adapter that it uses, without the adapter's factors."""
    paths = _linear_layers(path)
    linear = [matrix for matrix in path.plan.matrices if matrix.name in paths]
    coded_only = {matrix.tensor for matrix in linear}
    make = packed_files if mode == "packed" else archive_files
    files = make(path, dtype=dtype, coded_only=coded_only)
    tokenizer = load_tokenizer(files.small, files.label)  # before the work
    model = build_model(files, dtype, progress)
    model.requires_grad_(False)
    learned = _learned_sections(path, model, paths, learn)
    layers: dict[str, TunedLinear] = {}
    for matrix in linear:
        module = model.get_submodule(paths[matrix.name][0])
        left, right = path.factors(matrix.name) or (None, None)
        gain = path.gain(matrix.name)
        if gain is None and "rows" in learn:
            gain = torch.ones(matrix.shape[0])
        column_gain = torch.ones(matrix.shape[1]) if "columns" in learn else None
        layers[matrix.name] = TunedLinear(
            _tracked(path, matrix, learned)
            or (module.weight.t() if matrix.transposed else module.weight),
            left=left,
            right=right,
            gain=gain,
            column_gain=column_gain,
            fixed_gain=not {"gains", "rows"} & set(learn),
            bias=module.bias,
        )
        for target in paths[matrix.name]:
            model.set_submodule(target, layers[matrix.name])
    for one in learned.values():
        if one.module is not None:
            owner, _, name = one.module.rpartition(".")
            learn_parameter(model.get_submodule(owner), name, one)
    model.to(device).eval()
    untuned = tuple(name for name in path.names if name not in layers)
    replaced = frozenset() if path.adapter is None else frozenset(path.adapter.replaced)
    tunable = TunableModel(model, tokenizer, layers, untuned, path.digest, learn, learned, replaced)
    if path.adapter is not None:
        tunable.adapter = path.adapter.digest
    return tunable


def _learned_sections(
    archive: ModelArchive,
    model: Any,  # noqa: ANN401
    paths: Mapping[str, tuple[str, ...]],
    learn: Collection[Learn],
) -> dict[str, LearnedSection]:
    """What is to be learned beside factors and gains, by section.

    A table that also decodes a matrix which is no linear layer of its own stays as it is.
    """
    kept = {tensor.name for tensor in archive.plan.tensors}
    modules = parameter_names(model, kept)
    fixed = {
        one.name
        for matrix in archive.plan.matrices
        if matrix.name not in paths
        for one in sections_of(matrix)
    }
    learned = {}
    for name, one in learnable_sections(archive.plan).items():
        of_tensor = one.owner in kept
        if one.group not in learn or name in fixed or (of_tensor and one.owner not in modules):
            continue
        module = modules[one.owner] if of_tensor and one.owner is not None else None
        learned[name] = LearnedSection(one, archive.values(one), module)
    return learned


def _tracked(
    archive: ModelArchive, matrix: PlannedMatrix, learned: Mapping[str, LearnedSection]
) -> TrackedMatrix | None:
    """What decodes a matrix from learned sections; None if it has none."""
    own = {one.spec.role: learned[one.name] for one in sections_of(matrix) if one.name in learned}
    if not own:
        return None
    layout, sections = archive.coded_sections(matrix.name)
    fixed = {role: value for role, value in sections.items() if role not in own}
    return TrackedMatrix(layout, fixed, own)


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
