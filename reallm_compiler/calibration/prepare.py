"""Everything that is known before the first pass: the model, its text, and the file to the byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.calibration.events import Event
from reallm_compiler.calibration.options import CalibrateOptions
from reallm_compiler.calibration.original import Original
from reallm_compiler.calibration.own_text import OwnText
from reallm_compiler.calibration.probe import TOKENS, Probed, probe_model
from reallm_compiler.calibration.sequences import Chunk, chunks_of, predicted
from reallm_compiler.calibration.text import draw_sequences
from reallm_compiler.checkpoint import Inventory
from reallm_compiler.checkpoint.identity import shard_facts
from reallm_compiler.errors import CalibrateError, SourceError
from reallm_compiler.models.blocks import hidden_states
from reallm_compiler.models.sequences import read_texts
from reallm_compiler.models.source import source_files
from reallm_compiler.models.text import window_of
from reallm_compiler.models.text_models import check_reads, text_tokenizer, usable_positions
from reallm_compiler.planning.statistics import (
    measured_matrices,
    statistics_document,
    statistics_layout,
)
from reallm_compiler.runs.identity import digest_of, machine_fields
from reallm_compiler.runs.output import Output
from reallm_compiler.runs.training import StateFiles
from reallm_formats import Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Everything that is known before the first pass; the model was tried on `ids` [2, t]."""

    ids: Tensor
    probed: Probed
    chunks: list[Chunk]
    layout: Layout
    settings: Mapping[str, Any]
    text: bytes
    own_text: OwnText | None
    width: int


def prepare(
    inventory: Inventory,
    paths: tuple[str | os.PathLike[str], ...],
    options: CalibrateOptions,
    device: torch.device,
    output: Output,
    emit: Callable[[Event], None],
) -> Prepared:
    """The model, the sequences and the layout.

    Raises:
        CalibrateError, SourceError: as `calibrate` does.
    """
    files = source_files(inventory, inventory.path)
    tokenizer = text_tokenizer(files)
    if options.own_text and paths:
        raise CalibrateError(
            "a text is given, and the model was to write one itself",
            hint="leave out `--text` or `--own-text`",
        )
    texts, digest = ([], b"") if options.own_text else read_texts(paths, CalibrateError)
    facts = measured_matrices(inventory)
    if not facts:
        raise SourceError("this model has no linear layer to measure", location=files.label)
    original = Original(inventory, facts, device)
    window = window_of(options.window, [usable_positions(original.model)], CalibrateError)
    own_text = None
    if options.own_text:
        own_text = _own_text(inventory, output, options, window, device)
        sequences = own_text.sequences(
            files, tokenizer, options.samples, window, options.seed, device, emit
        )
        digest = hashlib.sha256(torch.tensor(sequences).numpy().tobytes()).digest()
    else:
        sequences = draw_sequences(tokenizer, texts, window, options)
    with original.as_a_whole():
        largest = max(map(max, sequences))
        check_reads(original.model, sequences[0], largest, CalibrateError)
    chunks = chunks_of(sequences)
    count = min(TOKENS, window)
    rows = [(sequence * count)[:count] for sequence in (sequences[0], sequences[-1])]
    ids = torch.tensor(rows, device=device)
    probed = probe_model(inventory, options.form, ids, device, original)
    width = 0
    if probed.calls is not None:
        first = probed.original.blocks[0].module
        width = hidden_states(probed.original.model, first, ids).shape[-1]
    settings = options.plain(sequences=len(sequences), window=window)
    document = statistics_document(
        probed.measurement.rows, tokens=predicted(chunks), settings=settings
    )
    return Prepared(
        ids=ids,
        probed=probed,
        chunks=chunks,
        layout=statistics_layout(document),
        settings=settings,
        text=digest,
        own_text=own_text,
        width=width,
    )


def _own_text(
    inventory: Inventory,
    output: Output,
    options: CalibrateOptions,
    window: int,
    device: torch.device,
) -> OwnText:
    """The text that the model writes, with what an interrupted run has drawn of it."""
    identity = {
        "window": str(window),
        "seed": str(options.seed),
        "source": digest_of(shard_facts(inventory)),
        **machine_fields(device),
    }
    path = StateFiles(output.partial, digest_of(identity)).path("own text")
    return OwnText(path, identity)
