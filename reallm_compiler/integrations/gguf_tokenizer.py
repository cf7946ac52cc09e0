"""A tokenizer.json as the metadata of GGUF: tokens, merges or scores, special tokens, template.

Two families are known, and others are refused. Byte-level pair encoding (GPT-2's) is stored by its
merges and the name of the rule that cuts a text before. Pair encoding with `▁` for spaces and
bytes as a fallback (SentencePiece's, of Llama 2 and Mistral) is stored by scores: programs merge
the pair of the highest score first, so the merge of rank r has the score -r.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reallm_compiler.checkpoint.paths import parse_json
from reallm_compiler.errors import ExportError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""Types of tokens."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS = {
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
}
"""Rules that cut a text into words, and what GGUF calls them; GPT-2's own is `gpt-2`."""

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


def tokenizer_metadata(files: Mapping[str, bytes], rows: int, label: str) -> dict[str, Any]:
    """Keys and values of a tokenizer; none if the model has none.

    Args:
        files: the small files of a model.
        rows: of the embedding: there are as many tokens, some perhaps unused.
        label: what to call the model in messages.

    Raises:
        ExportError: GGUF has no form for this tokenizer.
    """
    if TOKENIZER not in files:
        return {}
    stored = parse_json(files[TOKENIZER], f"{label}: {TOKENIZER}")
    settings = parse_json(files.get(SETTINGS, b"{}"), f"{label}: {SETTINGS}")
    model = stored["model"]
    if model.get("type") != "BPE":
        raise _refused(f"it is of type {model.get('type')}", label)
    tokens, types = _tokens(stored, rows)
    found: dict[str, Any] = {"tokens": tokens}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        ranks = {"".join(pair.split(" ", 1)): -float(rank) for rank, pair in enumerate(merges)}
        found |= {
            "model": "llama",
            "pre": "default",
            "scores": [ranks.get(token, 0.0) for token in tokens],
            "add_space_prefix": _prepends_space(stored),
        }
        types = [
            BYTE if kind == NORMAL and _is_byte(token) else kind
            for token, kind in zip(tokens, types, strict=True)
        ]
    else:
        found |= {"model": "gpt2", "pre": _cut(stored, label), "merges": merges}
    found["token_type"] = types
    found |= _special(stored, settings, tokens)
    template = files[TEMPLATE].decode() if TEMPLATE in files else settings.get("chat_template")
    metadata = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    return metadata | ({"tokenizer.chat_template": template} if isinstance(template, str) else {})


def _tokens(stored: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """All tokens by their numbers, and their types; what is left over of `rows` is unused."""
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [UNUSED] * rows
    for token, index in stored["model"]["vocab"].items():
        if index < rows:
            tokens[index], types[index] = token, NORMAL
    unknown = stored["model"].get("unk_token")
    for added in stored.get("added_tokens", []):
        if added["id"] < rows:
            tokens[added["id"]] = added["content"]
            types[added["id"]] = CONTROL if added.get("special") else USER
            if added["content"] == unknown:
                types[added["id"]] = UNKNOWN
    return tokens, types


def _special(
    stored: Mapping[str, Any], settings: Mapping[str, Any], tokens: list[str]
) -> dict[str, Any]:
    """Numbers of the special tokens, and which are added to a text."""
    index = {token: number for number, token in enumerate(tokens)}
    found: dict[str, Any] = {}
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for key, name in keys.items():
        token = settings.get(f"{key}_token")
        token = token.get("content") if isinstance(token, Mapping) else token
        if token in index:
            found[f"{name}_token_id"] = index[token]
    added = _added(stored.get("post_processor"))
    for key in ("bos", "eos"):
        if f"{key}_token_id" in found:
            found[f"add_{key}_token"] = tokens[found[f"{key}_token_id"]] in added
    return found


def _added(post: Any) -> set[str]:  # noqa: ANN401 - JSON
    """Special tokens that a post-processor puts around a text."""
    if not isinstance(post, Mapping):
        return set()
    inner = post.get("processors", [])
    found = {token for one in inner for token in _added(one)}
    single = post.get("single") or []
    return found | {part["SpecialToken"]["id"] for part in single if "SpecialToken" in part}


def _prepends_space(stored: Mapping[str, Any]) -> bool:
    """Whether a text begins with a space of its own."""
    text = json.dumps([stored.get("normalizer"), stored.get("pre_tokenizer")])
    never = '"prepend_scheme": "never"' in text
    return ('"Prepend"' in text or '"Metaspace"' in text) and not never


def _cut(stored: Mapping[str, Any], label: str) -> str:
    """GGUF's name of how a text is cut into words before pairs are merged."""
    cutter = stored.get("pre_tokenizer") or {}
    parts = cutter.get("pretokenizers", [cutter])
    level = [part for part in parts if part.get("type") == "ByteLevel"]
    splits = [part for part in parts if part.get("type") == "Split"]
    if len(level) == 1 and len(level) + len(splits) == len(parts):
        if not splits and level[0].get("use_regex", True):
            return "gpt-2"
        if len(splits) == 1 and not level[0].get("use_regex", True):
            name = CUTS.get(splits[0].get("pattern", {}).get("Regex", ""))
            if name is not None:
                return name
    raise _refused("GGUF has no name for the rule that cuts a text into words", label)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _refused(why: str, label: str) -> ExportError:
    return ExportError(
        f"the tokenizer cannot be written as GGUF: {why}",
        location=f"{label}: {TOKENIZER}",
        note="known are byte-level BPE cut as by GPT-2, Llama 3 or Qwen 2, and BPE that falls back "
        "to bytes",
    )
