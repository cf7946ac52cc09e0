"""`write_report`: from archives to the file that a person opens in a browser."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reallm_compiler.publish import check_file, new_file, refuse_inputs
from reallm_compiler.report.files import AdapterFile, ModelFile, read_files
from reallm_compiler.report.frontier import frontier, read_planned
from reallm_compiler.report.layers import all_matrices, errors_by_block, heat_maps
from reallm_compiler.report.made import adapter_matrices, provenance, recipes, tuning
from reallm_compiler.report.overview import bytes_of, summary
from reallm_compiler.report.page import Part, page
from reallm_compiler.report.steps import OnStep, Steps

if TYPE_CHECKING:
    from reallm_compiler.evaluate import Evaluation
    from reallm_compiler.report.original import Originals


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenReport:
    """A report that was written.

    Attributes:
        path: the file.
        nbytes: its length.
        remarks: what a reader of it should know first.
    """

    path: Path
    nbytes: int
    remarks: tuple[str, ...]


def write_report(
    files: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    text: str | os.PathLike[str] | None = None,
    planned: str | os.PathLike[str] | None = None,
    mode: Literal["dense", "packed"] = "dense",
    window: int | None = None,
    device: str = "cpu",
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    force: bool = False,
    progress: bool | None = None,
    on_step: OnStep | None = None,
) -> WrittenReport:
    """Write one HTML file about archives of models and adapters.

    Without `reference` and `text` only manifests are read. The same files give the same bytes.

    Args:
        files: archives; several stand side by side.
        output: the file to write.
        reference: the checkpoint that they were made of: adds errors as norms, spectra and
            distributions. Its matrices are read one at a time.
        text: a text to measure perplexity on, and with a reference the KL divergence.
        planned: what `reallm allocate --json` printed; its frontier is drawn.
        mode: how archives run on the text, as for `load`.
        window: tokens at once; see `evaluate`.
        device: where models run on the text.
        decoder: where trained decoders are that archives use but do not hold: a file or a folder.
        allow_cost: decode archives whatever that costs.
        force: replace an existing file.
        progress: print progress on stderr; None: where someone watches it, as for `load`.
        on_step: called with the progress instead.

    Raises:
        SourceError: no file, the same one twice, or the reference cannot be read.
        FormatError: a file is damaged, or holds neither a model nor an adapter.
        OutputError: the output exists without `force`, or cannot be written.
        EvaluationError: the text, the window or the device is unfit.
    """
    target = Path(output)
    check_file(target, force=force)
    refuse_inputs(target, *files, reference, text, planned)
    found = read_files(files)
    allocation = read_planned(planned) if planned is not None else None
    models = [file for file in found if isinstance(file, ModelFile)]
    adapters = [file for file in found if isinstance(file, AdapterFile)]
    report_step = on_step if on_step is not None else Steps(progress)
    quality: dict[str, Evaluation] = {}
    if text is not None:
        from reallm_compiler.report.quality import Running, measure

        running = Running(
            mode=mode, device=device, window=window, decoder=decoder, allow_cost=allow_cost
        )
        quality = measure(found, text, reference, running, report_step)
    originals: Originals | None = None
    if reference is not None and models:
        from reallm_compiler.report.original import compare

        originals = compare(
            models, reference, decoder=decoder, allow_cost=allow_cost, on_step=report_step
        )
    norms = originals.norms if originals is not None else {}
    parts = [Part("files", "Files", summary(found))]
    if models:
        parts.append(Part("bytes", "Where the bytes are", bytes_of(models)))
    if any(model.budget.matrices for model in models):
        parts += [
            Part("layers", "Bits and error by layer", heat_maps(models)),
            Part("blocks", "Errors by block", errors_by_block(models, norms)),
            Part(
                "frontier",
                "Size against what is lost",
                frontier(models, norms, quality, allocation),
            ),
        ]
    if text is not None:
        from reallm_compiler.report.quality import quality as quality_part

        parts.append(Part("quality", "Quality", quality_part(found, quality)))
    if originals is not None and originals.curves:
        from reallm_compiler.report.original_view import distributions, spectra

        labels = [model.label for model in models]
        parts += [
            Part("spectra", "Spectra", spectra(labels, originals)),
            Part("distributions", "Distributions", distributions(labels, originals)),
        ]
    parts += [
        Part("tuning", "Tuning", tuning(found)),
        Part("recipes", "Recipes", recipes(models)),
        Part("provenance", "Provenance", provenance(found)),
        Part("matrices", "All matrices", all_matrices(models)),
        Part("adapters", "Matrices of adapters", adapter_matrices(adapters)),
    ]
    remarks = tuple(
        f"The reference is not the model that {label} was made of: its errors differ from those "
        "in the file."
        for label in (originals.strangers if originals is not None else ())
    )
    title = f"reallm: {', '.join(file.label for file in found)}"
    data = page(title, remarks, parts).encode()
    with new_file(target, force=force) as partial:
        partial.write_bytes(data)
    return WrittenReport(path=target, nbytes=len(data), remarks=remarks)
