"""Stacks of experts: 3-D tensors that hold one linear layer for each expert.

A stack is known by its name (`experts.gate_up_proj`), or by its shape: where the config counts
experts, a 3-D tensor of floats with that many slices stacks them, whatever it is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reallm_compiler.tensors import TensorSpec

_EXPERTS = re.compile(r"(^|\.)(shared_)?experts(\.|$)|\.(in|out)put_linear$")
_EXPERT_WEIGHT = re.compile(
    r"(gate_up_proj|gate_proj|up_proj|down_proj|gate_and_up_projs?|down_projs?|input_linear"
    r"|output_linear|w1|w2|w3|v1|w13|mlp\.(w1|v1|w2)|fc1|fc2|fc3)(_weight)?$"
)
_MOE = re.compile(r"(^|\.)(\w+_)?moe\.")
_NO_LINEAR = re.compile(r"conv\d*d?|.*_conv|.*_conv\dd|conv_.*|.*norm\d*|.*(bias|embed.*|_emb)")
"""Last words of 3-D tensors that are no products with the state."""
_DOWN = re.compile(r"(down_projs?|output_linear|w2|fc2)(_weight)?$")

_IN_OUT = frozenset({"llama4", "llama4_text", "gpt_oss", "aria", "aria_text"}) | {
    "openai_privacy_filter",
    "qwen3_vl_moe",
    "qwen3_vl_moe_text",
}
"""Models whose stacks of experts are [experts, in, out]; all others store [experts, out, in]."""


def is_expert_weight(name: str) -> bool:
    """Whether a tensor's name, without `.weight`, is that of the weights of experts."""
    return bool(_EXPERTS.search(name) and _EXPERT_WEIGHT.search(name))


def is_expert_slice(name: str) -> bool:
    """Whether a matrix's name is that of one expert of a stack, such as `moe.up_proj.7`."""
    stack, _, last = name.rpartition(".")
    named = _EXPERTS.search(stack) or _MOE.search(stack)
    return last.isdecimal() and bool(named) and _EXPERT_WEIGHT.search(stack) is not None


@dataclass(frozen=True, slots=True)
class Experts:
    """What a config states about stacks of experts.

    Attributes:
        counts: the numbers of experts that it states.
        widths: widths of the model's state, by which a slice shows which axis is which.
        stored_in_out: whether the model type stores slices as [in, out].
    """

    counts: frozenset[int]
    widths: frozenset[int]
    stored_in_out: bool

    @classmethod
    def of(cls, config: Mapping[str, Any] | None, types: frozenset[str]) -> Experts:
        """What `config` states; `types` are the model types in it."""
        parts = [] if config is None else [config, *_inner(config)]
        widths = (part.get("hidden_size") for part in parts)
        return cls(
            frozenset(count for part in parts for count in _counts(part)),
            frozenset(width for width in widths if isinstance(width, int)),
            not types.isdisjoint(_IN_OUT),
        )

    def stacked_in(self, tensor: TensorSpec) -> bool:
        """Whether a tensor is a stack of linear layers, one for each expert."""
        name = tensor.name.removesuffix(".weight")
        if len(tensor.shape) != 3:
            return False
        if is_expert_weight(name):
            return True
        last = name.rpartition(".")[2]
        by_shape = tensor.shape[0] in self.counts and min(tensor.shape) > 1
        return by_shape and _NO_LINEAR.fullmatch(last) is None

    def in_out(self, name: str, rows: int, columns: int) -> bool:
        """Whether a slice is stored as [in, out].

        One axis is the width of the state: the outputs of a projection down, the inputs of any
        other. Where the shape is ambiguous (a square), the model type decides.
        """
        if (rows in self.widths) != (columns in self.widths):
            state_first = rows in self.widths
            return state_first != (_DOWN.search(name) is not None)
        return self.stored_in_out


def _inner(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for value in config.values():
        if isinstance(value, Mapping):
            yield value


def _counts(part: Mapping[str, Any]) -> Iterator[int]:
    """Numbers of routed experts, under whatever key: `n_routed_experts`, `num_local_experts`."""
    for key, value in part.items():
        parts = str(key).split("_")
        if parts[-1] == "experts" and not {"shared", "tok", "token"} & set(parts):
            numbers = value if isinstance(value, list | tuple) else [value]
            yield from (n for n in numbers if isinstance(n, int) and n > 1)
