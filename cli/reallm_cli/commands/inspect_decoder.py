"""What `reallm inspect` shows of a decoder: how it is built, and what each part of it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reallm_cli.archive_views import archive_facts, archive_json, show_settings
from reallm_cli.exit_codes import ExitCode
from reallm_cli.mistakes import CommandLineError
from reallm_cli.tables import Sheet, show_facts, show_sheet
from reallm_cli.terminal import Terminal
from reallm_cli.views import section_json, show_sections
from reallm_compiler.hints import did_you_mean, nearest
from reallm_compiler.numbers import amount_text, grouped, share_text
from reallm_compiler.planning.decoders import open_decoder_file
from reallm_compiler.planning.opened import provenance_text
from reallm_compiler.stages import Hnerv
from reallm_compiler.storage import hnerv_costs as costs
from reallm_compiler.storage import hnerv_structure as structure
from reallm_formats import Archive
from reallm_formats.kinds.decoder import section_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part of a decoder, as it acts on a patch.

    Attributes:
        name: `stem`, `stage 1` and so on, or `head`.
        kernel: rows and columns of its convolution.
        stride: factor by which it enlarges.
        inputs, outputs: channels before and after.
        makes: rows and columns that it makes of a patch.
        numel: weights that are stored as codes.
        values: weights and biases that are stored as float16.
    """

    name: str
    kernel: int
    stride: int
    inputs: int
    outputs: int
    makes: tuple[int, int]
    numel: int
    values: int

    def to_json(self) -> dict[str, Any]:
        """Plain data under the documented keys."""
        return {
            "name": self.name,
            "kernel": self.kernel,
            "stride": self.stride,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "makes": list(self.makes),
            "numel": self.numel,
            "values": self.values,
        }


def inspect_decoder(
    terminal: Terminal, archive: Archive, path: str, name: str | None, *, as_json: bool
) -> int:
    """Show a decoder, or one of its sections."""
    stage = open_decoder_file(Path(path)).stage
    if name is not None:
        _one(terminal, archive, path, name, as_json=as_json)
    elif as_json:
        terminal.json(_whole_json(archive, stage))
    else:
        _show(terminal, archive, path, stage)
    return ExitCode.OK


def parts_of(stage: Hnerv) -> list[Part]:
    """The parts of a decoder with a width, in the order in which they act."""
    channels, rows, columns = stage.latent
    width = structure.decoder_width(stage, (1, 1), shared=True)
    parts = [
        Part(
            name="stem",
            kernel=1,
            stride=1,
            inputs=channels,
            outputs=width,
            makes=(rows, columns),
            numel=0,
            values=channels * width + width,
        )
    ]
    for index, made in enumerate(structure.stages(stage, width), start=1):
        rows, columns = rows * made.stride, columns * made.stride
        parts.append(
            Part(
                name=f"stage {index}",
                kernel=made.kernel,
                stride=made.stride,
                inputs=made.inputs,
                outputs=made.outputs,
                makes=(rows, columns),
                numel=made.numel,
                values=made.channels,
            )
        )
    last = parts[-1].outputs
    head = Part(
        name="head",
        kernel=3,
        stride=1,
        inputs=last,
        outputs=1,
        makes=(rows, columns),
        numel=0,
        values=9 * last + 1,
    )
    return [*parts, head]


def _show(terminal: Terminal, archive: Archive, path: str, stage: Hnerv) -> None:
    width = structure.decoder_width(stage, (1, 1), shared=True)
    parts = parts_of(stage)
    facts = [
        *archive_facts(archive, path),
        *provenance_text(archive.decoder.provenance).items(),
    ]
    show_facts(terminal, facts, title="decoder")
    plain = archive.decoder.structure
    shown = {key: plain[key] for key in structure.STRUCTURE}
    show_settings(terminal, shown, "structure")
    terminal.data()
    numel, values = sum(part.numel for part in parts), sum(part.values for part in parts)
    sheet = Sheet(
        columns=[
            "<part",
            "kernel",
            "stride",
            "channels",
            "makes",
            f"weights of {stage.decoder_bits} bits",
            "float16 values",
        ],
        rows=[
            (
                part.name,
                f"{part.kernel} x {part.kernel}",
                str(part.stride),
                f"{part.inputs} -> {part.outputs}",
                f"{part.makes[0]} x {part.makes[1]}",
                grouped(part.numel) if part.numel else "",
                grouped(part.values),
            )
            for part in parts
        ],
        total=("all", "", "", "", "", grouped(numel), grouped(values)),
    )
    show_sheet(terminal, sheet, title="parameters")
    terminal.data()
    terminal.data(
        f"{grouped(numel + values)} parameters, "
        f"{amount_text(costs.patch_macs(stage, width), 'MAC')} decode a patch"
    )
    terminal.data()
    show_sections(terminal, archive.manifest.sections)
    terminal.data()
    _show_bytes(terminal, archive)


def _show_bytes(terminal: Terminal, archive: Archive) -> None:
    """Every byte of the file under one name."""
    layout = archive.layout
    rows = [
        *((entry.name, entry.nbytes) for entry in archive.manifest.sections),
        ("header", layout.header_bytes),
        ("manifest", layout.manifest_bytes),
        ("padding", layout.padding_bytes),
    ]
    sheet = Sheet(
        columns=["<part of the file", "bytes", "share"],
        rows=[(name, grouped(size), share_text(size, layout.file_bytes)) for name, size in rows],
        total=("file", grouped(layout.file_bytes), share_text(1, 1)),
    )
    show_sheet(terminal, sheet)


def _whole_json(archive: Archive, stage: Hnerv) -> dict[str, Any]:
    layout = archive.layout
    width = structure.decoder_width(stage, (1, 1), shared=True)
    return {
        **archive_json(archive),
        "provenance": provenance_text(archive.decoder.provenance),
        "structure": dict(archive.decoder.structure),
        "parts": [part.to_json() for part in parts_of(stage)],
        "parameters": structure.decoder_parameters(stage, width),
        "patch_macs": costs.patch_macs(stage, width),
        "sections": [section_json(entry) for entry in archive.manifest.sections],
        "header_bytes": layout.header_bytes,
        "manifest_bytes": layout.manifest_bytes,
        "padding_bytes": layout.padding_bytes,
        "file_bytes": layout.file_bytes,
    }


def _one(terminal: Terminal, archive: Archive, path: str, name: str, *, as_json: bool) -> None:
    """One section, by its name or its role."""
    table = archive.sections
    entry = table.get(name) or table.get(section_name(name))
    if entry is None:
        roles = [known.rpartition("/")[2] for known in table]
        raise CommandLineError(
            f"the decoder holds nothing called `{name}`",
            location=path,
            hint=did_you_mean(nearest(name, roles)) or f"it holds {', '.join(roles)}",
        )
    if as_json:
        terminal.json(section_json(entry))
    else:
        show_sections(terminal, (entry,))
