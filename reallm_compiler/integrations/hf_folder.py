"""Archives as folders of transformers that stay packed (`hf` reads them), with a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint.architecture import meta_model
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.distribution import VERSION
from reallm_compiler.errors import ExportError
from reallm_compiler.integrations.packed_folders import write_config
from reallm_compiler.models.shards import ShardWriter
from reallm_compiler.models.small_files import write_files
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.progress import OnProgress
from reallm_compiler.reader.archive import ModelArchive
from reallm_compiler.reader.huggingface import archive_files
from reallm_compiler.runtime.mapped import packed_weight_of

CARD = "README.md"

MEASURES = {
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "kl": "KL from the original, nats per token",
    "reference_perplexity": "perplexity of the original",
    "top1_agreement": "same most likely token as the original",
}
"""What a card shows of `reallm eval --json`."""


def write_hf(
    archive: ModelArchive,
    folder: Path,
    report: OnProgress,
    quality: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a folder with the sections of an archive for `from_pretrained`.

    Args:
        archive: the archive.
        folder: an empty folder.
        report: is called with tensors that are written, and how many there are.
        quality: what `reallm eval --json` printed, for the card.

    Returns:
        Names of coded matrices that are written as dense weights: none.

    Raises:
        ExportError: a coded tensor is no parameter of the model's class.
        FormatError: the archive is damaged.
        SourceError: it holds no model that transformers knows.
    """
    from reallm_compiler.integrations.hf import METHOD, section_tensors
    from reallm_compiler.integrations.hf import VERSION as STATED

    files = archive_files(archive)
    parts: dict[str, list[PlannedMatrix]] = {}
    for matrix in archive.plan.matrices:
        parts.setdefault(matrix.tensor, []).append(matrix)
    known = {name for name, _ in meta_model(files.config, files.label).named_parameters()}
    joined = sorted(set(parts) - known)
    if joined or not parts:
        raise ExportError(
            f"`{joined[0]}` is no parameter of the model's class, which joins it with others"
            if joined
            else "no tensor of this archive is coded, so there is nothing to keep packed",
            location=str(archive.path),
            hint='`reallm.load(file, mode="packed")` runs the archive itself'
            if joined
            else "`reallm reconstruct` writes the plain folder",
        )
    writer = ShardWriter(folder)
    forms: list[str] = []
    tensors: dict[str, int | list[int]] = {}
    names = archive.tensor_names
    for done, name in enumerate(names):
        report(done, len(names))
        if name not in parts:
            writer.add(name, archive.tensor(name))
            continue
        weight = packed_weight_of(archive, parts[name])
        for key, data in section_tensors(name, weight):
            writer.add(key, data)
        numbers = []
        for piece in weight.value.pieces:
            if piece.form not in forms:
                forms.append(piece.form)
            numbers.append(forms.index(piece.form))
        tensors[name] = numbers[0] if parts[name][0].index is None else numbers
    report(len(names), len(names))
    writer.finish()
    write_files(archive.files(), folder)
    stated = {
        "quant_method": METHOD,
        "version": STATED,
        "archive": archive.digest.hex(),
        "forms": [json.loads(form) for form in forms],
        "tensors": tensors,
        "transposed": sorted(name for name, own in parts.items() if own[0].transposed),
    }
    write_config(folder, files.config, stated, TORCH_DTYPES[archive.plan.matrices[0].dtype])
    (folder / CARD).write_text(card(archive, quality), encoding="utf-8")
    return []


def card(archive: ModelArchive, quality: Mapping[str, Any] | None = None) -> str:
    """The model card: what it is, how to run it, sizes, and measured quality if there is any."""
    totals = archive.budget().totals
    rows = [
        ("archive", f"{totals.file_bytes:,} bytes"),
        ("weights in coded matrices", f"{totals.numel:,}"),
        ("exact bits per coded weight", f"{float(totals.exact_bits):.4f}"),
        ("bits per coded weight as papers count them", f"{float(totals.paper_bits):.4f}"),
        ("digest of the archive", f"`{archive.digest.hex()}`"),
    ]
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- reallm",
        "- quantized",
        "---",
        "",
        "# Packed by reallm",
        "",
        f"Weights stay in the codes of an archive (reallm {VERSION}); layers compute from them.",
        "",
        "```python",
        "import reallm_compiler  # registers the quantization method `reallm`",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        "```",
        "",
        "Without that import transformers refuses the folder.",
        "",
        "| size | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in rows),
    ]
    found = quality or {}
    measured = {key: found[key] for key in MEASURES if found.get(key) is not None}
    if measured:
        lines += ["", f"Measured by `reallm eval` on `{Path(str(found.get('text'))).name}`:", ""]
        lines += ["| measure | |", "|---|---|"]
        lines += [f"| {MEASURES[key]} | {value:.6g} |" for key, value in measured.items()]
    return "\n".join(lines) + "\n"
