"""The graph of a model: which tensors read the residual stream, which write it, and which make what
others read.

It is known for the families in `FAMILIES`, by the names of their tensors. Each tensor has one
`Role`; a tensor without one is refused, as nobody knows what a rotation would do to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from reallm_compiler.errors import SourceError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
LAST_NORM = "model.norm.weight"

_AFTER = (
    "its norms come after attention and MLP: they act on what is written to the residual stream"
)
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_PARALLEL = "attention and MLP read one norm with a mean, which does not commute with a rotation"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What a family has of its own beside the names that all of them share.

    Attributes:
        fused: q, k and v are rows of one matrix `qkv_proj`, gate and up of `gate_up_proj`.
        gain_offset: what a norm adds to its stored gains.
    """

    fused: bool = False
    gain_offset: int = 0


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(gain_offset=1),
    "phi3": Family(fused=True),
}
"""The families whose graph is known, by model type."""

REFUSED: Mapping[str, str] = {
    "olmo2": _AFTER,
    "olmo3": _AFTER,
    "gemma2": _AFTER,
    "gemma3": _AFTER,
    "gemma3_text": _AFTER,
    "cohere": _PARALLEL,
    "cohere2": _PARALLEL,
}
"""Why a model type cannot be folded and rotated, where the reason is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purpose:
    """What the graph is wanted for, as messages say it.

    Attributes:
        action: what cannot be done without it.
        hint: what to do instead.
    """

    action: str
    hint: str


PREPARE = Purpose(
    action="`prepare` cannot fold and rotate", hint="leave `prepare` out of the recipe"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Producer:
    """What makes the input of some matrices, one number of it for each gain or row.

    Attributes:
        tensor: the gains of a norm [q], or a matrix [p, n] whose outputs reach the input as they
            are, or times something that it does not make.
        rows: first of the rows that make the input, and the row after the last; None for all.
        bias: name of the bias of these rows, whether it is there or not; None for a norm.
        offset: what a norm adds to its stored gains.
        head, times: each `head` rows are that input of `times` heads, which follow each other.
    """

    tensor: str
    rows: tuple[int, int] | None = None
    bias: str | None = None
    offset: int = 0
    head: int = 1
    times: int = 1

    @property
    def norm(self) -> bool:
        """Whether it is a norm."""
        return self.bias is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """What a tensor has to do with the residual stream.

    Attributes:
        norm: the norm whose output its columns read; None if they read something else.
        folded: it is such a norm.
        reads: its columns are coordinates of the residual stream.
        writes: its rows are.
        layer: number of the layer whose attention it is a part of, for `values`; else None.
        values: first of the rows that are the values of heads, and the row after the last; None
            for none.
        attended: its columns are the values of heads.
        producer: what makes the input that its columns read; None where nothing does alone.
    """

    norm: str | None = None
    folded: bool = False
    reads: bool = False
    writes: bool = False
    layer: int | None = None
    values: tuple[int, int] | None = None
    attended: bool = False
    producer: Producer | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """The graph of a model.

    Attributes:
        roles: of each tensor, by name.
        hidden: extent of the residual stream.
        head: extent of an attention head.
        gain_offset: what a norm adds to its stored gains.
    """

    roles: Mapping[str, Role]
    hidden: int
    head: int
    gain_offset: int


def graph_of(
    config: Mapping[str, Any] | None,
    names: Iterable[str],
    label: str,
    purpose: Purpose = PREPARE,
) -> Graph:
    """The graph of a model.

    Args:
        config: its config.
        names: of its tensors, the head's among them also where it is tied to the embedding.
        label: the model's name in messages.
        purpose: what it is wanted for.

    Raises:
        SourceError: the family's graph is not known, or a tensor has no part in it.
    """
    family, content = _family(config, label, purpose)
    hidden, heads = content["hidden_size"], content["num_attention_heads"]
    head = content.get("head_dim") or hidden // heads
    groups = content.get("num_key_value_heads") or heads
    values, up = (0, groups * head), None
    if family.fused:  # the rows of q and k come first, and those of gate
        first = (heads + groups) * head
        values = (first, first + groups * head)
        up = (content["intermediate_size"], 2 * content["intermediate_size"])
    sizes = _Sizes(head=head, times=heads // groups, values=values, up=up)
    roles: dict[str, Role] = {}
    for name in names:
        role = _role(name, family, sizes)
        if role is None:
            raise _outside(f"`{name}` has no part in the known graph", content, label, purpose)
        roles[name] = role
    for name in (EMBEDDING, LAST_NORM):
        if name not in roles:
            what = f"there is no `{name}`, a part of the graph"
            raise _outside(what, content, label, purpose)
    return Graph(
        roles=roles,
        hidden=hidden,
        head=head,
        gain_offset=family.gain_offset,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes:
    """Extents that roles need: a head, heads with the same values, rows of values and of `up`."""

    head: int
    times: int
    values: tuple[int, int]
    up: tuple[int, int] | None


def _outside(what: str, content: Mapping[str, Any], label: str, purpose: Purpose) -> SourceError:
    return SourceError(
        f"{what} of a `{content['model_type']}` model, so {purpose.action} it",
        location=label,
        hint=purpose.hint,
    )


def _family(
    config: Mapping[str, Any] | None, label: str, purpose: Purpose
) -> tuple[Family, Mapping[str, Any]]:
    if config is None:
        raise SourceError(
            f"{purpose.action} a model whose graph is unknown: there is no config.json to tell it",
            location=label,
            hint=f"give the folder of a whole model, or {purpose.hint}",
        )
    named = config.get("model_type")
    family = FAMILIES.get(named) if isinstance(named, str) else None
    if family is None:
        reason = REFUSED.get(named) if isinstance(named, str) else None
        raise SourceError(
            f"{purpose.action} a model of the type `{named}`",
            location=label,
            note=reason or f"the graph is known of {', '.join(f'`{name}`' for name in FAMILIES)}",
            hint=purpose.hint,
        )
    sizes: tuple[str, ...] = ("hidden_size", "num_attention_heads")
    if family.fused:
        sizes = (*sizes, "intermediate_size")
    for key in (*sizes, "head_dim", "num_key_value_heads"):
        value = config.get(key)
        if (value is None and key in sizes) or not (value is None or _is_size(value)):
            raise SourceError(
                f"`{key}` is not a whole number above 0",
                location=f"{label}: config.json",
                hint="compare it with the config.json that the model was published with",
            )
    return family, config


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _role(name: str, family: Family, sizes: _Sizes) -> Role | None:
    """The role of a tensor; None for a name that the family does not have."""
    if name == EMBEDDING:
        return Role(reads=True)
    if name == LAST_NORM:
        return Role(folded=True)
    if name == HEAD:
        return Role(norm=LAST_NORM, reads=True, producer=_norm(LAST_NORM, family))
    found = _LAYER.fullmatch(name)
    if found is None:
        return None
    layer, part = int(found[1]), found[2]
    before = {norm: f"model.layers.{layer}.{norm}" for norm in _NORMS}
    attention, mlp = (before[norm] for norm in _NORMS)
    of_attention = Role(norm=attention, reads=True, producer=_norm(attention, family))
    of_mlp = Role(norm=mlp, reads=True, producer=_norm(mlp, family))
    values = sizes.values
    of_values = replace(of_attention, layer=layer, values=values)
    value = f"model.layers.{layer}.self_attn.{'qkv' if family.fused else 'v'}_proj"
    up = f"model.layers.{layer}.mlp.{'gate_up' if family.fused else 'up'}_proj"
    attended = Producer(
        tensor=f"{value}.weight",
        rows=values,
        bias=f"{value}.bias",
        head=sizes.head,
        times=sizes.times,
    )
    gated = Producer(tensor=f"{up}.weight", rows=sizes.up, bias=f"{up}.bias")
    of_layer = {
        _NORMS[0]: Role(folded=True),
        _NORMS[1]: Role(folded=True),
        "self_attn.o_proj.weight": Role(writes=True, layer=layer, attended=True, producer=attended),
        "self_attn.o_proj.bias": Role(writes=True),
        "mlp.down_proj.weight": Role(writes=True, producer=gated),
        "mlp.down_proj.bias": Role(writes=True),
    }
    if family.fused:
        of_layer |= {
            "self_attn.qkv_proj.weight": of_values,
            "mlp.gate_up_proj.weight": of_mlp,
        }
        return of_layer.get(part)
    of_layer |= {
        "self_attn.v_proj.weight": of_values,
        "self_attn.v_proj.bias": Role(layer=layer, values=values),
        "self_attn.rotary_emb.inv_freq": Role(),
    }
    for matrix in ("self_attn.q", "self_attn.k"):
        of_layer[f"{matrix}_proj.weight"] = of_attention
        of_layer[f"{matrix}_proj.bias"] = Role()
        of_layer[f"{matrix}_norm.weight"] = Role()
    for matrix in ("mlp.gate", "mlp.up"):
        of_layer[f"{matrix}_proj.weight"] = of_mlp
        of_layer[f"{matrix}_proj.bias"] = Role()
    return of_layer.get(part)


def _norm(name: str, family: Family) -> Producer:
    return Producer(tensor=name, offset=family.gain_offset)
