"""The end of a calibration: the file becomes an archive, and what it says is reported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from reallm_compiler.calibration.events import CalibrateReport
from reallm_compiler.calibration.prepare import Prepared
from reallm_compiler.calibration.sequences import predicted
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.planning.document import fixed_text
from reallm_compiler.planning.statistics import statistics_document
from reallm_compiler.runs.output import Output
from reallm_compiler.runs.tasks import TaskResult, section_digests, source_digests
from reallm_formats import Writer


def finish(
    ready: Prepared,
    output: Output,
    done: Mapping[str, TaskResult],
    identity: Mapping[str, Any],
) -> None:
    """Write the manifest and the header: from now on the file is an archive."""
    source = source_digests(done.values())
    rows = ready.probed.measurement.rows
    tensor_of = ready.probed.original.tensor_of
    texts = {key: fixed_text(str(identity[key])) for key in ("compute", "reallm", "torch")}
    document = statistics_document(
        rows,
        tokens=predicted(ready.chunks),
        settings=ready.settings,
        digests={row.name: bytes.fromhex(source[tensor_of(row.name)]) for row in rows},
        provenance={**texts, "text": ready.text},
    )
    with Writer.open(output.partial, ready.layout) as writer:
        writer.finish(document.plain(), section_digests(done.values()))


def report_of(output: Output, ready: Prepared, began: float, *, resumed: int) -> CalibrateReport:
    """What the finished file says of tokens that did not reach a matrix, or were left out."""
    with StatisticsFile(output.path) as file:
        facts = {name: file.facts(name) for name in file.rows}
        shapes = {name: row.shape for name, row in file.rows.items()}
        nbytes = file.nbytes
    return CalibrateReport(
        path=str(output.path),
        file_bytes=nbytes,
        matrices=len(facts),
        sequences=sum(len(chunk.numbers) for chunk in ready.chunks),
        tokens=predicted(ready.chunks),
        left_out=ready.probed.left_out,
        unreached=tuple(name for name, one in facts.items() if not one.reached),
        few={name: one.reached for name, one in facts.items() if 0 < one.reached < shapes[name][1]},
        not_finite={name: one.left_out for name, one in facts.items() if one.left_out},
        dead={name: one.dead for name, one in facts.items() if one.reached and one.dead},
        seconds=time.monotonic() - began,
        tasks_resumed=resumed,
    )
