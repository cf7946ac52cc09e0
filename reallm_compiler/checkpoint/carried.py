"""The small files that an archive carries, so that it alone rebuilds the model.

Only names on the lists below are taken: the config, the generation config, what a tokenizer, a
processor or a chat template is made of, and the modules that sentence-transformers puts behind a
model. Program code is never carried, even where the config asks for it: a model that needs its own
code is loaded with the code of its repository. What else lies in the folder is left out, and a
note names it, but for texts about the model, pictures, code, and weights in other files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from reallm_compiler.checkpoint.paths import list_files, read_small, resolve_inside
from reallm_compiler.errors import FormatError, SourceError
from reallm_formats.names import file_section, parse_name

NAMES = (
    # the model
    "config.json",
    "generation_config.json",
    # chat templates
    "chat_template*.json",
    "*.jinja",
    # tokenizers
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tokenizer.model.v[0-9]",
    "*_tokenizer_config.json",
    "*_vocab.json",
    "added_tokens.json",
    "bpe.codes",
    "byte_maps.json",
    "dict.txt",
    "emoji.json",
    "encoder.json",
    "merges.txt",
    "normalizer.json",
    "prophetnet.tokenizer",
    "special_tokens_map.json",
    "tekken*.json",
    "tokenizer*.json",
    "vocab*.bpe",
    "vocab*.json",
    "vocab*.txt",
    "word_pronunciation.json",
    "word_shape.json",
    # processors of images, sound and video
    "*feature_extractor*.json",
    "*processor*.json",
    # sentence-transformers
    "config_sentence_transformers.json",
    "modules.json",
    "router_config.json",
    "sentence_*_config.json",
)
"""Names of files to carry, as patterns."""
TOKENIZERS = (
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tekken*.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab*.json",
    "vocab*.txt",
)
"""Those that make a tokenizer, as patterns: any one of them is enough to try."""
TEMPLATES = "additional_chat_templates"
MODULES = "modules.json"
_MODULE = re.compile(r"[0-9]+_[A-Za-z]\w*")
"""Folders of the modules that `modules.json` lists: `1_Pooling`, `2_Dense`."""
_MODULE_WEIGHTS = "model.safetensors"
FOLDERS = (
    f"{TEMPLATES}/*.jinja",
    "[0-9]*_*/config.json",
    f"[0-9]*_*/{_MODULE_WEIGHTS}",
)
"""Files of inner folders to carry, as patterns for a download."""
FILE_LIMIT = 128 * 2**20
"""Longest single file; the largest tokenizers of today take about 40 MiB."""

_ABOUT = re.compile(r"(?i)(readme|licen[cs]e|notice|copying|use_policy|acceptable_use|\.).*")
_OTHER_KINDS = re.compile(
    r"(?i).*\.(md|rst|html|pdf|png|jpe?g|gif|svg|webp|ico|mp4|wav|mp3|flac"
    r"|py|ipynb|sh|safetensors|bin|pt|pth|ckpt|pkl|gguf|ggml|h5|msgpack|onnx|onnx_data|ot|tflite|pb"
    r"|npz|npy|index\.json|log|reallm|partial|journal|adapter|lock)"
)


def embedded_files(folder: Path) -> tuple[tuple[tuple[str, bytes], ...], tuple[str, ...]]:
    """The files of a folder to carry, and notes on those that are left out.

    Args:
        folder: the checkpoint's.

    Returns:
        (relative path, content) sorted by path; the notes.

    Raises:
        SourceError: one of them leads out of the folder, cannot be read, is too long, or has a
            name that an archive does not hold.
    """
    names: list[str] = []
    left: list[str] = []
    present = list_files(folder)
    for name in present:
        path = folder / name
        if name == TEMPLATES or (_MODULE.fullmatch(name) and MODULES in present):
            inner = [f"{name}/{one}" for one in list_files(resolve_inside(folder, name))]
            taken = [one for one in inner if is_carried(one) and not _too_long(folder, one)]
            names += taken
            left += (one for one in inner if one not in taken and not _ABOUT.fullmatch(_last(one)))
        elif path.is_dir():
            left += [f"{name}/"] if _holds_more(path) else []
        elif is_carried(name):
            names.append(name)
        elif not _ABOUT.fullmatch(name) and not _OTHER_KINDS.fullmatch(name):
            left.append(name)
    notes = (f"files that are not carried: {_listed(left)}",) if left else ()
    return tuple((name, _content(folder, name)) for name in sorted(names)), notes


def is_carried(path: str) -> bool:
    """Whether an archive carries a file of this path, relative to the checkpoint's folder."""
    folder, _, name = path.rpartition("/")
    if folder == TEMPLATES:
        return name.endswith(".jinja")
    if folder and not _MODULE.fullmatch(folder):
        return False
    if name.endswith(".index.json"):
        return False
    listed = any(fnmatchcase(name, pattern) for pattern in NAMES)
    return listed or (bool(folder) and name == _MODULE_WEIGHTS)


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _too_long(folder: Path, path: str) -> bool:
    """Whether a module's weights are left out; any other file that is too long is refused."""
    if _last(path) != _MODULE_WEIGHTS:
        return False
    try:
        return os.path.getsize(resolve_inside(folder, path)) > FILE_LIMIT
    except OSError:
        return False  # reading it will fail with a reason


def _holds_more(folder: Path) -> bool:
    """Whether a folder holds files that might matter to the model; a link is not followed."""
    if folder.name.startswith("."):
        return False
    if folder.is_symlink():
        return True
    try:
        entries = list_files(folder)
    except SourceError:
        return True
    return any(not _ABOUT.fullmatch(name) and not _OTHER_KINDS.fullmatch(name) for name in entries)


def _listed(names: Iterable[str]) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12:,} more" if len(shown) > 12 else "")


def _content(folder: Path, name: str) -> bytes:
    try:
        parse_name(file_section(name))
    except (FormatError, UnicodeEncodeError) as error:
        raise SourceError(
            "this name cannot be carried in an archive",
            location=str(folder / name),
            note=error.message if isinstance(error, FormatError) else "it is not UTF-8",
            hint="rename it, or remove it from the folder",
        ) from error
    try:
        return read_small(resolve_inside(folder, name), name, FILE_LIMIT)
    except SourceError as error:
        if error.location != name:
            raise
        raise SourceError(
            error.message, location=str(folder / name), note=error.note, hint=error.hint
        ) from error
