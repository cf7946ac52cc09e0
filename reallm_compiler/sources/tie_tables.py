"""Which tensors transformers 5.23 ties: names by family, and model types by how they say it.

Facts only; `ties.py` reads them, and its test compares them with transformers.
"""

from __future__ import annotations

HEADS: tuple[tuple[str, str], ...] = (
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
"""(head, embedding) by family, below each of `PREFIXES`.

`*` is the model's own name: such a head has a bias or more, which the checkpoint stores."""

WORDS = ".embeddings.word_embeddings.weight"
PREFIXES = ("", "language_model.", "text_model.", "text_decoder.", "decoder.", "thinker.")

SHARED: tuple[tuple[str, str], ...] = (
    ("encoder.embed_tokens.weight", "shared.weight"),
    ("decoder.embed_tokens.weight", "shared.weight"),
    ("text_encoder.embed_tokens.weight", "shared.weight"),
    ("text_decoder.embed_tokens.weight", "shared.weight"),
)
"""Embeddings that an encoder and a decoder share, below each of `SHARING`."""

SHARING = ("", "model.", "led.", "language_model.", "model.language_model.")

BIASES: tuple[tuple[str, str, str], ...] = (
    ("cls.predictions.decoder.bias", "cls.predictions.bias", "cls.predictions.transform."),
    ("lm_head.decoder.bias", "lm_head.bias", "lm_head.dense."),
    ("predictions.decoder.bias", "predictions.bias", "predictions.dense."),
)
"""(alias, bias, what a head of this kind has besides)."""

HEAD_OF_TYPE = {
    "canary": "proj_out.weight",
    "cohere_asr": "proj_out.weight",
    "moonshine": "proj_out.weight",
    "trocr": "output_projection.weight",
    "whisper": "proj_out.weight",
}
"""The head's name, where the embedding's name leaves it open."""

CLASSES_WITH_A_HEAD = (
    "CausalLM",
    "ConditionalGeneration",
    "DoubleHeads",
    "EncoderDecoder",
    "LMHead",
    "MaskedLM",
    "PreTraining",
)

# fmt: off
TIED_UNLESS_SAID = frozenset({
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

ALWAYS_TIED = frozenset({"longt5", "mt5", "pop2piano", "t5", "udop", "umt5"})
"""Model types for which `tie_word_embeddings` means something else."""

HEAD_INSIDE = {
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

EITHER = {
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

INNER = ("text_config", "thinker_config", "decoder")
