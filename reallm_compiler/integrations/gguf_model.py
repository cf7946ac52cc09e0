"""What GGUF says of a model: its architecture, hyperparameters, and the names of its tensors.

Known are the models whose graph is Llama's: Llama, Mistral, Qwen 2 and 3. The numbers and names are
those that programs of the family of llama.cpp look for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.errors import ExportError

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Architectures of GGUF by the classes of transformers."""

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of the parts of a block."""

WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
"""Names of what is outside the blocks."""

YARN = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
"""Keys of YaRN that GGUF says; with all else at its default."""


class GgufModel:
    """A model of one of `ARCHITECTURES`.

    Args:
        config: transformers' own config object.
        made: the name of its class.
        label: what to call the model in messages.

    Raises:
        ExportError: another architecture, or positions that GGUF cannot say.
    """

    def __init__(self, config: Any, made: str, label: str) -> None:  # noqa: ANN401
        if made not in ARCHITECTURES:
            raise ExportError(
                f"{made} is none of the models that are written as GGUF",
                location=label,
                note=f"these are {', '.join(ARCHITECTURES)}",
            )
        self.architecture = ARCHITECTURES[made]
        self._config = config
        self._label = label
        self._heads: int = config.num_attention_heads
        self._key_heads: int = getattr(config, "num_key_value_heads", None) or self._heads
        self._head: int = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._rope: Mapping[str, Any] = config.rope_parameters
        if getattr(config, "hidden_act", "silu") != "silu":
            raise self._refused(f"its activation is `{config.hidden_act}`, not `silu`")

    def name(self, tensor: str) -> str:
        """GGUF's name of a tensor of the checkpoint.

        Raises:
            ExportError: it has none.
        """
        module, _, last = tensor.rpartition(".")
        parts = module.split(".", 3)
        if module in WHOLE:
            return f"{WHOLE[module]}.{last}"
        if parts[:2] == ["model", "layers"] and parts[-1] in PARTS and parts[2].isdecimal():
            return f"blk.{int(parts[2])}.{PARTS[parts[-1]]}.{last}"
        raise self._refused(f"GGUF has no name for its tensor `{tensor}`")

    def row_order(self, tensor: str) -> Tensor | None:
        """Which row of a tensor is written at each place, [p]; None for their own order.

        In the architecture `llama` the two halves of each rotated head are interleaved.
        """
        heads = {"q_proj": self._heads, "k_proj": self._key_heads}.get(tensor.split(".")[-2])
        if self.architecture != "llama" or heads is None:
            return None
        rows = torch.arange(heads * self._head).view(heads, 2, self._head // 2)
        return rows.transpose(1, 2).reshape(-1)

    def numbers(self) -> dict[str, int | float | str]:
        """Hyperparameters, by their keys without the architecture."""
        config, head = self._config, self._head
        context = config.max_position_embeddings
        window = getattr(config, "sliding_window", None)
        if window and getattr(config, "use_sliding_window", True):
            context = min(context, window)  # so long, windows and all positions are the same
        found: dict[str, int | float | str] = {
            "vocab_size": config.vocab_size,
            "context_length": context,
            "embedding_length": config.hidden_size,
            "block_count": config.num_hidden_layers,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": self._heads,
            "attention.head_count_kv": self._key_heads,
            "attention.key_length": head,
            "attention.value_length": head,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "rope.dimension_count": head,
            "rope.freq_base": float(self._rope["rope_theta"]),
        }
        return found | self._rope_scaling()

    def rope_factors(self) -> Tensor | None:
        """What each frequency is divided by, float32 [head / 2]: Llama 3's rule; None without it.

        Wavelengths beyond the old context over `low_freq_factor` are divided by `factor`, those
        below it over `high_freq_factor` by 1, and between the two the frequency is interpolated.
        """
        if self._rope.get("rope_type") != "llama3":
            return None
        rope = self._rope
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        old = rope["original_max_position_embeddings"]
        exponent = torch.arange(0, self._head, 2, dtype=torch.float64) / self._head
        wavelength = 2 * math.pi * float(rope["rope_theta"]) ** exponent
        share = ((old / wavelength - low) / (high - low)).clamp(0, 1)
        factors: Tensor = 1 / ((1 - share) / factor + share)
        return factors.to(torch.float32)

    def _rope_scaling(self) -> dict[str, int | float | str]:
        rope = self._rope
        kind = rope.get("rope_type", "default")
        if kind in ("default", "llama3"):
            return {}
        if kind == "linear":
            return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
        if kind == "yarn" and rope.keys() <= YARN:
            old = rope.get("original_max_position_embeddings")
            return {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(rope["factor"]),
                "rope.scaling.original_context_length": int(
                    old or self._config.max_position_embeddings
                ),
            }
        raise self._refused(f"its positions are scaled by `{kind}`, which is not written as GGUF")

    def _refused(self, why: str) -> ExportError:
        return ExportError(f"the model cannot be written as GGUF: {why}", location=self._label)
