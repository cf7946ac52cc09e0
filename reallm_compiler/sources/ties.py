"""Tied tensors: two names for one tensor, such as a head that is the token embedding.

Ties are read from the config and the names, never from the values: two tensors that happen to be
equal stay two, and the size of an archive never depends on the data. A checkpoint that ties may
still store both names; then one is planned, and the other is listed as a duplicate, so that
whoever reads the weights can make sure that the two are equal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_HEADS: tuple[tuple[str, str], ...] = (
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("lm_head.weight", "model.language_model.embed_tokens.weight"),
    ("lm_head.weight", "model.text_model.embed_tokens.weight"),
    ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
    ("text_model.lm_head.weight", "text_model.model.embed_tokens.weight"),
    ("lm_head.weight", "model.decoder.embed_tokens.weight"),
    ("lm_head.weight", "decoder.embed_tokens.weight"),
    ("proj_out.weight", "model.decoder.embed_tokens.weight"),
    ("output_projection.weight", "model.decoder.embed_tokens.weight"),
    ("output_projection.weight", "biogpt.embed_tokens.weight"),
    ("lm_head.weight", "transformer.wte.weight"),
    ("lm_head.weight", "wte.weight"),
    ("lm_head.weight", "transformer.word_embeddings.weight"),
    ("lm_head.weight", "word_embeddings.weight"),
    ("lm_head.weight", "transformer.tokens_embed.weight"),
    ("lm_head.weight", "transformer.w.weight"),
    ("embed_out.weight", "gpt_neox.embed_in.weight"),
    ("lm_head.weight", "gpt_neox.embed_in.weight"),
    ("embed_out.weight", "gpt_neox_japanese.embed_in.weight"),
    ("lm_head.weight", "backbone.embeddings.weight"),
    ("head.weight", "rwkv.embeddings.weight"),
    ("lm_head.weight", "model.shared.weight"),
    ("lm_head.weight", "shared.weight"),
    ("decoder.weight", "model.embeddings.tok_embeddings.weight"),
    ("pred_layer.proj.weight", "transformer.embeddings.weight"),
    ("lm_loss.weight", "transformer.word_embedding.weight"),
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    ("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
    ("lm_head.weight", "embed_tokens.weight"),
)
"""(head, embedding) by family; `tie_word_embeddings` says whether they are one."""

_ENCODER_DECODER: tuple[tuple[str, str], ...] = (
    ("encoder.embed_tokens.weight", "shared.weight"),
    ("decoder.embed_tokens.weight", "shared.weight"),
    ("model.encoder.embed_tokens.weight", "model.shared.weight"),
    ("model.decoder.embed_tokens.weight", "model.shared.weight"),
)
"""Embeddings that an encoder and a decoder share; tied where the shared one is stored."""

# fmt: off
_TIED_UNLESS_SAID = frozenset({
    "bart", "bert", "bigbird_pegasus", "biogpt", "blenderbot", "blenderbot-small", "bloom",
    "camembert", "cohere", "cohere2", "cohere2_moe", "ctrl", "electra", "ernie4_5",
    "ernie4_5_moe", "falcon", "falcon_mamba", "gemma", "gemma2", "gemma3", "gemma3_text",
    "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text",
    "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "granite_swa", "jetmoe",
    "lfm2", "lfm2_moe", "m2m_100", "mamba", "marian", "mbart", "modernbert-decoder", "mpt", "mt5",
    "mvp", "openai-gpt", "opt", "pegasus", "plbart", "recurrent_gemma", "roberta", "smollm3",
    "starcoder2", "t5", "trocr", "umt5", "vaultgemma", "whisper", "xglm", "xlm", "xlm-roberta",
    "xlnet", "zamba", "zamba2",
})
# fmt: on
"""Model types that tie when the config does not say; all others do not."""

_INNER = ("text_config", "llm_config", "language_config", "decoder")


def says_tied(config: Mapping[str, Any] | None) -> bool:
    """Whether a config ties the head to the token embedding."""
    if config is None:
        return False
    parts = [config]
    parts += [config[key] for key in _INNER if isinstance(config.get(key), Mapping)]
    for part in parts:
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    words = [part.get("model_type") for part in parts]
    return any(isinstance(word, str) and word in _TIED_UNLESS_SAID for word in words)


def find_ties(names: Collection[str], config: Mapping[str, Any] | None) -> dict[str, str]:
    """The ties of a checkpoint: alias to the name of the tensor that is kept.

    The kept tensor is always in the checkpoint; the alias need not be.

    Args:
        names: names of all tensors of the checkpoint.
        config: the model's config, or None: then nothing is tied.
    """
    if config is None:
        return {}
    present = set(names)
    ties = {
        alias: kept
        for alias, kept in _ENCODER_DECODER
        if kept in present and (alias in present or _under(alias, present))
    }
    if not says_tied(config):
        return ties
    rows = [row for row in _HEADS if row[1] in present and row[1] not in ties]
    stored = [row for row in rows if row[0] in present]
    if stored:
        ties.update(stored)
    elif rows:
        ties[rows[0][0]] = rows[0][1]
    else:
        ties.update(_kept_under_alias(present))
    return ties


def _under(name: str, present: Collection[str]) -> bool:
    """Whether the checkpoint has anything in the module that `name` lies in."""
    parent = name.split(".embed_tokens")[0] + "."
    return any(other.startswith(parent) for other in present)


def _kept_under_alias(present: Collection[str]) -> dict[str, str]:
    """A tied checkpoint that stores the head alone: the embedding is then the alias."""
    found = []
    for head, embedding in _HEADS:
        parent = embedding.removesuffix(".weight").rpartition(".")[0]
        if head in present and parent and any(n.startswith(f"{parent}.") for n in present):
            found.append((len(parent), embedding, head))
    if not found:
        return {}
    # The deepest module that the checkpoint has; of equals the first row, as in the table.
    best = max(found, key=lambda row: row[0])
    return {best[1]: best[2]}
