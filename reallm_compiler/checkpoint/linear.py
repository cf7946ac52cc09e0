"""Which tensors are the weights of linear layers, read off names and shapes.

What a tensor is for cannot be seen in its numbers, and building the model only to ask would need
torch and the model's code. Names suffice, and the tables below are all that is known about
names: a family of models that needs a new word gets a row, not a branch.

A tensor is a *matrix*, which can be coded, if it is 2-D and holds floating-point numbers, or if
it is a 3-D stack of experts, which counts as so many matrices. A matrix is coded by default if
its role is `linear`. The other roles are kept unless a recipe says otherwise:

embedding   a table that is looked up, of tokens or of positions: no product is made with it
head        the last layer, which turns a state into scores of tokens or classes
router      the gate of a mixture of experts: small, and an error in it sends tokens astray
norm        the scale of a normalization
vector      one extent is 1: a vector in disguise
other       not named as a layer's weight (a bias of all experts, a state-space parameter)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from reallm_compiler.checkpoint.experts import Experts, is_expert_slice, is_expert_weight
from reallm_compiler.checkpoint.headers import FLOATS
from reallm_compiler.checkpoint.layers import layer_prefix, model_layer
from reallm_compiler.errors import SourceError
from reallm_compiler.tensors import TensorSpec

Role = Literal["linear", "embedding", "head", "router", "norm", "vector", "other"]

_MODULES: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("router", re.compile(r"(.*_)?router|gate|wg|shared_expert_gate")),
    (
        "embedding",
        re.compile(
            r"(?!.*(proj|project|projection|mapping_in)$).*embed.*"  # but not their projections
            r"|wte|wpe|shared|.*_emb|emb|relative_attention_bias|bias_values"
        ),
    ),
    (
        "head",
        re.compile(
            r".*lm_head|embed_out|score|classifier|.*classifier|output_projection|qa_outputs"
            r"|unembed|lm_loss|codec_head|vocab_projector|pooler_head|head"
        ),
    ),
    ("norm", re.compile(r".*norm\d*|ln_.*|.*_ln|ln\d*|.*layer_?norm.*")),
    ("other", re.compile(r"conv\d*d?|.*_conv|.*_conv\dd|conv_.*")),
)
"""Words for the last module of a tensor's name; the first row that fits the whole word holds."""

_ANYWHERE: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("router", re.compile(r"router")),
    ("head", re.compile(r"lm_head|embed_out|shared_head")),
)
"""Words that decide wherever they stand: what is inside such a module belongs to it."""

_WHOLE: Mapping[str, Role] = {
    "transformer.w": "embedding",
    "output": "head",
    "proj_out": "head",
    "lm_head.decoder": "head",
    "cls.predictions.decoder": "head",
    "generator_lm_head": "head",
    "pred_layer.proj": "head",
}
"""Whole names, where the last part alone is ambiguous."""

_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
"""Layers of these models that store [in, out] where all others store [out, in]."""

EXPERT_LIMIT = 2048
"""Most experts of a layer; large models of today have 512 at most."""

_EXPERT_NUMBER = re.compile(r"(?:^|\.)(?:\w+_)?experts?\.(\d+)(?=\.|$)")
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixFact:
    """A matrix of the checkpoint, as the codecs see it: [p, q] = [outputs, inputs].

    Attributes:
        name: the tensor's name without `.weight`; an expert adds `.INDEX`.
        tensor: name of the tensor that holds it.
        index: the expert's index along the first axis of a 3-D tensor, or None.
        transposed: stored as [q, p] (`Conv1D`, some stacks of experts).
        shape: (p, q), outputs and inputs, whatever the stored order.
        dtype: element type of the weights, after scaling where there are scales.
        layer: number of the layer that it belongs to, or None.
        role: what it is for (module docstring).
    """

    name: str
    tensor: str
    index: int | None
    transposed: bool
    shape: tuple[int, int]
    dtype: str
    layer: int | None
    role: Role

    @property
    def coded_by_default(self) -> bool:
        """Whether the recipe's `defaults` plan it; all others are kept unless a rule says so."""
        return self.role == "linear"


def matrix_name(tensor: str) -> str:
    """The name that recipes, budgets and archives use: the tensor's without `.weight`."""
    return tensor.removesuffix(".weight")


def matrix_kind(name: str) -> str:
    """A matrix's name with `*` for the numbers of its layer and of its expert.

    `model.layers.3.mlp.experts.7.up_proj` and an expert of a stack, such as
    `model.layers.3.mlp.experts.up_proj.7`, lose both numbers; all others are part of the kind.
    """
    if is_expert_slice(name):
        name = f"{name.rpartition('.')[0]}.*"
    found = _EXPERT_NUMBER.search(name)
    if found:
        name = f"{name[: found.start(1)]}*{name[found.end(1) :]}"
    layer = layer_prefix(name)
    return f"{layer.rpartition('.')[0]}.*{name[len(layer) :]}" if layer else name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which `layers.2` stands before `layers.10`."""
    return [_natural_part(part) for part in _DIGITS.split(name) if part]


@lru_cache(1 << 14)
def _natural_part(part: str) -> tuple[int, int, str]:
    """(is it text, number, text), so that numbers and text never meet in a comparison."""
    return (0, int(part), part) if part.isascii() and part.isdigit() else (1, 0, part)


def model_types(config: Mapping[str, Any] | None) -> frozenset[str]:
    """The model types that a config and the configs inside it (text, decoder, ...) name."""
    if config is None:
        return frozenset()
    inner = [value for value in config.values() if isinstance(value, Mapping)]
    found = [part.get("model_type") for part in (config, *inner)]
    return frozenset(name for name in found if isinstance(name, str))


def matrices(
    tensors: Iterable[TensorSpec],
    config: Mapping[str, Any] | None,
    prediction: frozenset[str] = frozenset(),
) -> Iterator[MatrixFact]:
    """All matrices of a checkpoint, in the order of `tensors`; experts in their own order.

    Args:
        tensors: the checkpoint's tensors.
        prediction: layers that are no layers of the model (`layers.prediction_layers`).
        config: the model's config, or None. Without one, a matrix needs no `.weight` in its
            name to be a linear layer's, and nothing is transposed.

    Raises:
        SourceError: two matrices would have the same name.
    """
    types = model_types(config)
    experts = Experts.of(config, types)
    seen: dict[str, str] = {}
    for tensor in tensors:
        layer = model_layer(tensor.name, prediction)
        for fact in _facts(tensor, types, experts, layer, bare=config is None):
            if fact.name in seen:
                raise SourceError(
                    f"tensors {seen[fact.name]!r} and {tensor.name!r} would both be called "
                    f"{fact.name!r}",
                    location=tensor.shard or None,
                )
            seen[fact.name] = tensor.name
            yield fact


def _facts(
    tensor: TensorSpec, types: frozenset[str], experts: Experts, layer: int | None, *, bare: bool
) -> Iterator[MatrixFact]:
    if tensor.dtype not in FLOATS or 0 in tensor.shape:
        return
    name = matrix_name(tensor.name)
    if len(tensor.shape) == 2:
        module = name.rpartition(".")[2]
        transposed = module in _CONV1D_MODULES and not types.isdisjoint(_CONV1D_MODELS)
        rows, columns = tensor.shape
        yield MatrixFact(
            name=name,
            tensor=tensor.name,
            index=None,
            dtype=tensor.dtype,
            transposed=transposed,
            shape=(columns, rows) if transposed else (rows, columns),
            layer=layer,
            role=_role(tensor, name, bare=bare),
        )
    elif experts.stacked_in(tensor):
        count, rows, columns = tensor.shape
        if count > EXPERT_LIMIT:
            raise SourceError(
                f"tensor {tensor.name!r} stacks {count:,} experts, above {EXPERT_LIMIT:,}",
                location=tensor.shard or None,
            )
        transposed = experts.in_out(name, rows, columns)
        for index in range(count):
            yield MatrixFact(
                name=f"{name}.{index}",
                tensor=tensor.name,
                index=index,
                dtype=tensor.dtype,
                transposed=transposed,
                shape=(columns, rows) if transposed else (rows, columns),
                layer=layer,
                role="linear" if min(rows, columns) > 1 else "vector",
            )


def known_role(tensor: str) -> Role | None:
    """The role that a tensor's name alone decides, or None; a linear layer's needs its shape."""
    name = matrix_name(tensor)
    if name in _WHOLE:
        return _WHOLE[name]
    modules = name.split(".")
    return next(filter(None, map(_role_anywhere, modules)), None) or _role_of_module(modules[-1])


@lru_cache(1024)
def _role_anywhere(module: str) -> Role | None:
    return next((role for role, pattern in _ANYWHERE if pattern.fullmatch(module)), None)


@lru_cache(1024)
def _role_of_module(module: str) -> Role | None:
    return next((role for role, pattern in _MODULES if pattern.fullmatch(module)), None)


def _role(tensor: TensorSpec, name: str, *, bare: bool) -> Role:
    known = known_role(tensor.name)
    if known is not None:
        return known
    if min(tensor.shape) == 1:
        return "vector"
    named = tensor.name.endswith(".weight") or (bare and not name.endswith("bias"))
    return "linear" if named or is_expert_weight(name) else "other"
