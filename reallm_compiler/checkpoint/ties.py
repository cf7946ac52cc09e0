"""Tied tensors: two names for one tensor, such as a head that is the token embedding.

Ties are read from the config and the names, never from the values: two tensors that happen to be
equal stay two, and the size of an archive never depends on the data. A checkpoint that ties may
still store both names; then one is planned, and the other is listed as a duplicate, so that
whoever reads the weights can make sure that the two are equal.

The tables say what transformers 5.23 does, without importing it (`tests/checkpoint/test_ties.py`
compares them). It reads `tie_word_embeddings` from the config of the class that has the head. For
most models of text and images that is the outer config, and what `text_config` says counts for
nothing. Transformers also compares values where both names are stored, which is not done here: so
a stored tensor is left out only where the config itself, or the type of a plain language model,
says that it is a copy.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_HEADS: tuple[tuple[str, str], ...] = (
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("lm_head.weight", "model.language_model.embed_tokens.weight"),
    ("lm_head.weight", "model.text_model.embed_tokens.weight"),
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
    ("lm_head.weight", "model.language_model.shared.weight"),
    ("lm_head.weight", "shared.weight"),
    ("lm_head.weight", "led.shared.weight"),
    ("decoder.weight", "model.embeddings.tok_embeddings.weight"),
    ("lm_head.weight", "model.text_model.embeddings.tok_embeddings.weight"),
    ("pred_layer.proj.weight", "transformer.embeddings.weight"),
    ("lm_loss.weight", "transformer.word_embedding.weight"),
    ("cls.predictions.decoder.weight", "*.embeddings.word_embeddings.weight"),
    ("lm_head.decoder.weight", "*.embeddings.word_embeddings.weight"),
    ("predictions.decoder.weight", "*.embeddings.word_embeddings.weight"),
    ("generator_lm_head.weight", "*.embeddings.word_embeddings.weight"),
    ("vocab_projector.weight", "*.embeddings.word_embeddings.weight"),
    ("lm_head.weight", "embed_tokens.weight"),
)
"""(head, embedding) by family, below each of `_PREFIXES`.

`*` is the model's own name: such a head has a bias or more, which the checkpoint stores."""

_WORD_EMBEDDINGS = ".embeddings.word_embeddings.weight"
_PREFIXES = ("", "language_model.", "text_model.", "text_decoder.", "decoder.", "thinker.")

_SHARED: tuple[tuple[str, str], ...] = (
    ("encoder.embed_tokens.weight", "shared.weight"),
    ("decoder.embed_tokens.weight", "shared.weight"),
    ("text_encoder.embed_tokens.weight", "shared.weight"),
    ("text_decoder.embed_tokens.weight", "shared.weight"),
)
"""Embeddings that an encoder and a decoder share, below each of `_SHARING`."""

_SHARING = ("", "model.", "led.", "language_model.", "model.language_model.")

_BIASES: tuple[tuple[str, str, str], ...] = (
    ("cls.predictions.decoder.bias", "cls.predictions.bias", "cls.predictions.transform."),
    ("lm_head.decoder.bias", "lm_head.bias", "lm_head.dense."),
    ("predictions.decoder.bias", "predictions.bias", "predictions.dense."),
)
"""(alias, bias, what a head of this kind has besides)."""

_HEAD_OF_TYPE = {
    "canary": "proj_out.weight",
    "cohere_asr": "proj_out.weight",
    "moonshine": "proj_out.weight",
    "trocr": "output_projection.weight",
    "whisper": "proj_out.weight",
}
"""The head's name, where the embedding's name leaves it open."""

_CLASSES_WITH_A_HEAD = (
    "CausalLM",
    "ConditionalGeneration",
    "DoubleHeads",
    "EncoderDecoder",
    "LMHead",
    "MaskedLM",
    "PreTraining",
)

# fmt: off
_TIED_BY_DEFAULT = frozenset({
    "albert", "aya_vision", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus",
    "biogpt", "blenderbot", "blenderbot-small", "blip", "blip_text_model", "bloom", "camembert",
    "canary", "cohere", "cohere2", "cohere2_moe", "cohere2_vision", "cohere_compass_text",
    "convbert", "cpmant", "ctrl", "data2vec-text", "deberta", "deberta-v2", "deepseek_vl",
    "deepseek_vl_hybrid", "diffusion_gemma", "diffusion_gemma_text", "distilbert", "electra",
    "ernie", "ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "esm",
    "falcon", "falcon_mamba", "flaubert", "flava", "florence2", "fnet", "fun_asr_nano",
    "funnel", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4",
    "gemma4_text", "gemma4_unified", "gemma4_unified_assistant", "gemma4_unified_text",
    "glmasr", "got_ocr2", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox_japanese",
    "granite_docling", "granite_docling_text", "granite_speech", "granite_speech_plus",
    "granite_swa", "gte", "hunyuan_vl", "hunyuan_vl_text", "hyperclovax_vision_v2", "ibert",
    "internvl", "janus", "jetmoe", "jina_embeddings_v3", "kimi_k25", "kosmos-2", "kosmos-2.5",
    "kosmos_2_5_text_model", "kosmos_2_text_model", "layoutlm", "led", "lfm2", "lfm2_moe",
    "lfm2_vl", "lfm3", "lfm3_vl", "lighton_ocr", "longformer", "luke", "lxmert", "m2m_100",
    "mamba", "marian", "mbart", "megatron-bert", "minicpm3", "minicpm_ocr", "mistral3",
    "mobilebert", "modernbert", "modernbert-decoder", "moonshine", "moss_transcribe_diarize",
    "mpnet", "mpt", "mra", "mvp", "neomme", "nllb-moe", "nomic_bert", "nystromformer",
    "openai-gpt", "opt", "ovis2", "paddleocr_vl", "paddleocr_vl_text", "paligemma", "pegasus",
    "pegasus_x", "plbart", "pp_chart2table", "prophetnet", "qwen2_5_omni_text", "qwen3_asr",
    "qwen3_vl_moe_text", "recurrent_gemma", "roberta", "roberta-prelayernorm", "roc_bert",
    "roformer", "seamless_m4t", "seamless_m4t_v2", "smollm3", "speech_to_text",
    "speecht5", "squeezebert", "starcoder2", "switch_transformers", "t5gemma", "t5gemma2",
    "tapas", "trocr", "vaultgemma", "visual_bert", "voxtral_realtime", "whisper", "xglm", "xlm",
    "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "yoso", "youtu", "zamba", "zamba2",
    "zaya",
})
"""Model types that tie when the config does not say; all others do not."""
# fmt: on

_ALWAYS_TIED = frozenset({"longt5", "mt5", "pop2piano", "t5", "udop", "umt5"})
"""Model types for which `tie_word_embeddings` means something else."""

_HEAD_INSIDE = {
    "blip": ("text_config", "blip_text_model"),
    "blip-2": ("text_config", "opt"),
    "encoder-decoder": ("decoder", ""),
    "florence2": ("text_config", "bart"),
    "instructblip": ("text_config", "opt"),
    "instructblipvideo": ("text_config", "opt"),
    "kosmos-2": ("text_config", "kosmos_2_text_model"),
    "kosmos-2.5": ("text_config", "kosmos_2_5_text_model"),
    "llama4": ("text_config", "llama4_text"),
    "qwen2_5_omni": ("thinker_config", "qwen2_5_omni_thinker"),
    "speech-encoder-decoder": ("decoder", ""),
    "vibevoice": ("text_config", "qwen2"),
    "vision-encoder-decoder": ("decoder", ""),
}
"""Model types whose head belongs to a model inside: its config, and the type that it has if it
does not say."""

_EITHER = {
    "fast_vlm": "qwen2",
    "glm4v": "glm4v_text",
    "glm4v_moe": "glm4v_moe_text",
    "glm_ocr": "glm_ocr_text",
    "hunyuan_vl": "hunyuan_vl_text",
    "llava": "llama",
    "llava_next_video": "llama",
    "llava_onevision": "qwen2",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "paddleocr_vl": "paddleocr_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
    "shieldgemma2": "gemma3_text",
    "video_llama_3": "qwen2",
}
"""Model types that tie if either the outer config or `text_config` says so."""

_INNER = ("text_config", "thinker_config", "decoder")


def says_tied(config: Mapping[str, Any] | None) -> bool:
    """Whether a config ties the head to the token embedding, as transformers reads it."""
    if config is None:
        return False
    stated = config.get("model_type")
    model_type = stated if isinstance(stated, str) else ""
    if model_type in _ALWAYS_TIED:
        return True
    if model_type in _HEAD_INSIDE:
        key, usual = _HEAD_INSIDE[model_type]
        return _flag(config.get(key), usual)
    if _flag(config, model_type):
        return True
    return model_type in _EITHER and _flag(config.get("text_config"), _EITHER[model_type])


def _flag(part: object, model_type: str) -> bool:
    """What one level of a config says, or the default of its model type."""
    stated = part if isinstance(part, Mapping) else {}
    if isinstance(stated.get("tie_word_embeddings"), bool):
        return bool(stated["tie_word_embeddings"])
    own = stated.get("model_type")
    return (own if isinstance(own, str) else model_type) in _TIED_BY_DEFAULT


def _names_copies(config: Mapping[str, Any]) -> bool:
    """Whether a stored head is a copy by what the config states, not by a default of a pair."""
    parts = [config, *(config[key] for key in _INNER if isinstance(config.get(key), Mapping))]
    stated = [part.get("tie_word_embeddings") for part in parts]
    if stated[0] is True or config.get("model_type") in _HEAD_INSIDE:
        return says_tied(config)
    return False not in stated and (True in stated or len(parts) == 1)


def find_ties(names: Collection[str], config: Mapping[str, Any] | None) -> dict[str, str]:
    """The ties of a checkpoint: alias to the name of the tensor that is kept.

    The kept tensor is always in the checkpoint; the alias need not be.

    Args:
        names: names of all tensors of the checkpoint.
        config: the model's config, or None: then nothing is tied.
    """
    if config is None or not says_tied(config):
        return {}
    present = set(names)
    ties = {
        alias: kept
        for alias, kept in _below(_SHARING, _SHARED, present)
        if alias in present or _under(alias, present)
    }
    ties |= {
        alias: kept
        for alias, kept, beside in _BIASES
        if kept in present and any(name.startswith(beside) for name in present)
    }
    rows = [row for row in _below(_PREFIXES, _HEADS, present) if row[1] not in ties]
    stored = [row for row in rows if row[0] in present]
    if stored:
        ties.update(stored)
    elif rows and _has_a_head(config):
        usual = _HEAD_OF_TYPE.get(str(config.get("model_type")))
        alias, kept = next((row for row in rows if row[0] == usual), rows[0])
        ties[alias] = kept
    elif not rows:
        ties.update(_kept_under_alias(present))
    if not _names_copies(config):
        ties = {alias: kept for alias, kept in ties.items() if alias not in present}
    return ties


def _below(
    prefixes: tuple[str, ...], rows: tuple[tuple[str, str], ...], present: set[str]
) -> Iterator[tuple[str, str]]:
    """The rows of a table below each prefix whose kept tensor the checkpoint has."""
    tables = sorted(name for name in present if name.endswith(_WORD_EMBEDDINGS))
    for prefix in prefixes:
        for alias, kept in rows:
            found = prefix + kept if prefix + kept in present else None
            if kept.startswith("*"):
                head = prefix + alias.partition(".")[0] + "."
                if any(name.startswith(head) for name in present):
                    own = re.compile(re.escape(prefix) + r"\w+" + re.escape(_WORD_EMBEDDINGS))
                    found = next((name for name in tables if own.fullmatch(name)), None)
            if found is not None:
                yield prefix + alias, found


def _has_a_head(config: Mapping[str, Any]) -> bool:
    """Whether the class that a config names has a head; one that names none has."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return not isinstance(first, str) or any(part in first for part in _CLASSES_WITH_A_HEAD)


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
