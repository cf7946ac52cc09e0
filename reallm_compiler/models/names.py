"""Where the tensors of a checkpoint are in a model: transformers renames some on loading.

A vision-language checkpoint may say `language_model.model.layers.0.mlp.up_proj.weight` where the
model has `model.language_model.layers.0.mlp.up_proj.weight`; many leave out the prefix of the base
model. The rules are transformers' own. A tensor that is joined with others on loading, such as an
expert of Mixtral, is no parameter of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from reallm_compiler.checkpoint.linear import MatrixFact
from reallm_compiler.planning.parts import PlannedMatrix


def parameter_names(
    model: Any,  # noqa: ANN401
    tensors: Iterable[str],
) -> dict[str, str]:
    """The parameter or buffer of a model that a checkpoint's tensor becomes as it is, by its name.

    Args:
        model: the model; one without weights will do.
        tensors: names in the checkpoint. Those that the model has not, or joins with others, are
            left out.
    """
    loading: Any = importlib.import_module("transformers.core_model_loading")
    renamings, converters = conversion_steps(model)
    known = model.state_dict()
    found = {}
    for tensor in tensors:
        name, joined = loading.rename_source_key(
            tensor, renamings, converters, model.base_model_prefix, known
        )
        if joined is None and name in known:
            found[tensor] = name
    return found


def conversion_steps(model: Any) -> tuple[list[Any], list[Any]]:  # noqa: ANN401
    """What transformers does to the tensors of a checkpoint on loading: renamings, conversions."""
    loading: Any = importlib.import_module("transformers.core_model_loading")
    mapping: Any = importlib.import_module("transformers.conversion_mapping")
    steps = mapping.get_model_conversion_mapping(model)
    return (
        [one for one in steps if isinstance(one, loading.WeightRenaming)],
        [one for one in steps if isinstance(one, loading.WeightConverter)],
    )


def modules_of(
    model: Any,  # noqa: ANN401
    matrices: Iterable[PlannedMatrix | MatrixFact],
) -> dict[str, tuple[str, ...]]:
    """The modules whose whole weight a matrix is, as paths in the model by matrix name.

    Several share a weight that is tied, or that a model such as Zamba 2 repeats. A matrix that is
    no module's weight, such as an expert of a stack, has none.
    """
    sharing: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None:
            sharing.setdefault(id(weight), []).append(path)
    whole = [matrix for matrix in matrices if matrix.index is None]
    names = parameter_names(model, [matrix.tensor for matrix in whole])
    parameters: Mapping[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for matrix in whole:
        parameter = parameters.get(names.get(matrix.tensor, ""))
        found[matrix.name] = tuple(sharing.get(id(parameter), ()))
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input by its weight."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
