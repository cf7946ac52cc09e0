"""`reallm inspect`: what is inside an archive, whole or one matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from reallm_cli.commands.inspect_adapter import inspect_adapter
from reallm_cli.commands.inspect_decoder import inspect_decoder
from reallm_cli.commands.inspect_heatmap import show_heatmap
from reallm_cli.commands.inspect_statistics import inspect_statistics
from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.mistakes import CommandLineError, check_archive_path
from reallm_cli.opened import open_facts
from reallm_cli.options import cost_option, decoder_option
from reallm_cli.tables import show_facts
from reallm_cli.terminal import Terminal
from reallm_cli.views import section_json, show_sections, show_sizes
from reallm_compiler.hints import did_you_mean, nearest
from reallm_compiler.numbers import bits_text, error_text, grouped
from reallm_compiler.planning.budget import MatrixBudget
from reallm_compiler.planning.opened import Opened
from reallm_compiler.recipe.plain_yaml import in_reading_order, to_yaml
from reallm_formats import Archive, names


@click.command(
    "inspect",
    cls=ExampleCommand,
    short_help="Show what is inside an archive.",
    examples=[
        ("reallm inspect model.reallm", "header, provenance, recipe, sizes and errors"),
        (
            "reallm inspect model.reallm model.layers.0.self_attn.q_proj",
            "one matrix: its plan, its sections and its error",
        ),
        ("reallm inspect model.reallm --json", "all of it for scripts"),
        (
            "reallm inspect model.reallm --heatmap model.layers.0.mlp.up_proj -o f.png --model DIR",
            "a picture: the original, the reconstruction and the error",
        ),
    ],
)
@click.argument("archive", metavar="ARCHIVE")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--heatmap",
    metavar="NAME",
    help="Draw one matrix beside the original; needs `-o`, `--model` and matplotlib.",
)
@click.option("-o", "--output", metavar="FILE", help="The picture to write, .png or .svg.")
@click.option("--model", metavar="MODEL", help="The checkpoint that the archive was made of.")
@decoder_option
@cost_option
@click.pass_obj
def inspect(
    terminal: Terminal,
    archive: str,
    name: str | None,
    as_json: bool,
    heatmap: str | None,
    output: str | None,
    model: str | None,
    decoder: str | None,
    allow_cost: bool,
) -> int:
    """Show what is inside an archive, or all about one matrix, tensor or file in it.

    An archive may be that of a model, an adapter, a trained decoder, or statistics. The error of a
    matrix is ||W - W^|| / ||W||, measured on what was stored when it was encoded.
    """
    if heatmap is not None:
        return show_heatmap(
            terminal,
            archive,
            heatmap,
            output,
            model,
            decoder,
            allow_cost,
            alone=name is None and not as_json,
        )
    if output is not None or model is not None:
        raise CommandLineError(
            "`-o` and `--model` go with `--heatmap NAME`", location="`reallm inspect`"
        )
    check_archive_path(archive)
    with Archive.open(archive) as container:
        if container.kind != "model" and decoder is not None:
            raise CommandLineError(
                "`--decoder` goes with the archive of a model", location="`reallm inspect`"
            )
        if container.kind == "adapter":
            return inspect_adapter(terminal, container, archive, name, as_json=as_json)
        if container.kind == "decoder":
            return inspect_decoder(terminal, container, archive, name, as_json=as_json)
        if container.kind == "statistics":
            return inspect_statistics(terminal, container, archive, name, as_json=as_json)
    opened = open_facts(archive)
    decoders = opened.find_decoders(decoder)
    if name is not None:
        return _one(terminal, opened, name, as_json=as_json)
    if as_json:
        terminal.json(_whole_json(opened, decoders))
        return ExitCode.OK
    show_archive(terminal, opened, decoders)
    return ExitCode.OK


def show_archive(
    terminal: Terminal, opened: Opened, decoders: Mapping[str, str | None] | None = None
) -> None:
    """Header, provenance, recipe, sizes and errors of an archive.

    Args:
        terminal: where to show it.
        opened: the archive.
        decoders: files of trained decoders that it uses, by digest; looked for when None.
    """
    features = ", ".join(opened.manifest.features) or "none required"
    facts = [
        ("file", opened.path),
        ("format", f"version {opened.major}.{opened.minor}, kind `{opened.manifest.kind}`"),
        ("features", features),
        ("digest", opened.digest.hex()),
        *opened.provenance.items(),
    ]
    for digest, file in (opened.find_decoders() if decoders is None else decoders).items():
        location = (
            f"in `{file}`" if file is not None else "not beside this archive; see `--decoder`"
        )
        facts.append(("uses decoder", f"{digest}\n{location}"))
    show_facts(terminal, facts, title="archive")
    terminal.data()
    terminal.data(terminal.text("recipe", style="bold"))
    terminal.data(terminal.text(to_yaml(in_reading_order(opened.plan.recipe), 2)))
    terminal.data()
    show_sizes(terminal, opened.plan, opened.plan.budget(), errors=opened.errors)
    for alias, tensor in sorted(opened.plan.ties.items()):
        terminal.data(terminal.text(f"tied: {alias} is {tensor}, stored once"))


def _whole_json(opened: Opened, decoders: Mapping[str, str | None]) -> dict[str, Any]:
    sizes = opened.plan.budget()
    manifest = opened.manifest
    return {
        "format": {"major": opened.major, "minor": opened.minor},
        "kind": manifest.kind,
        "features": list(manifest.features),
        "digest": opened.digest.hex(),
        "provenance": opened.provenance,
        "recipe": opened.plan.recipe,
        **sizes.to_json(),
        "matrices": [_matrix_json(opened, row) for row in sizes.matrices],
        "tensors": [
            section_json(entry)
            for entry in manifest.sections
            if entry.name.startswith(names.TENSOR)
        ],
        "files": [
            section_json(entry) for entry in manifest.sections if entry.name.startswith(names.FILE)
        ],
        "ties": dict(opened.plan.ties),
        "decoders": [{"digest": digest, "path": file} for digest, file in decoders.items()],
    }


def _matrix_json(opened: Opened, row: MatrixBudget) -> dict[str, Any]:
    matrix = opened.plan.by_name[row.name]
    return {
        **row.to_json(),
        "relative_error": opened.errors[row.name],
        "plan": matrix.plan.plain(),
        "sections": [section_json(entry) for entry in opened.sections_of(matrix)],
    }


def _one(terminal: Terminal, opened: Opened, name: str, *, as_json: bool) -> int:
    """One matrix, or else one kept tensor or file."""
    short = name.removesuffix(".weight")
    row = next((row for row in opened.plan.budget().matrices if row.name == short), None)
    if row is None:
        _show_section(terminal, opened, name, as_json=as_json)
    elif as_json:
        terminal.json(_matrix_json(opened, row))
    else:
        _show_matrix(terminal, opened, row)
    return ExitCode.OK


def _show_matrix(terminal: Terminal, opened: Opened, row: MatrixBudget) -> None:
    matrix = opened.plan.by_name[row.name]
    stored_as = matrix.tensor if matrix.index is None else f"{matrix.tensor}, part {matrix.index}"
    facts = [
        ("shape", f"{row.shape[0]} x {row.shape[1]}, {grouped(row.numel)} weights"),
        ("tensor", f"{stored_as}, {matrix.dtype}" + (", transposed" if matrix.transposed else "")),
        ("paper bits", bits_text(row.paper_bits)),
        ("exact bits", bits_text(row.exact_bits)),
        ("bytes", grouped(row.nbytes)),
        ("error", error_text(opened.errors[row.name])),
    ]
    show_facts(terminal, facts, title=row.name)
    terminal.data()
    terminal.data(terminal.text("plan", style="bold"))
    terminal.data(terminal.text(to_yaml(in_reading_order(matrix.plan.plain()), 2)))
    terminal.data()
    show_sections(terminal, opened.sections_of(matrix))


def _show_section(terminal: Terminal, opened: Opened, name: str, *, as_json: bool) -> None:
    table = opened.sections
    tried = (name, names.tensor_section(name), f"{names.tensor_section(name)}.weight")
    entry = next(
        (table[full] for full in (*tried, names.file_section(name)) if full in table), None
    )
    if entry is None:
        tie = opened.plan.ties.get(name) or opened.plan.ties.get(f"{name}.weight")
        if tie is not None:
            raise CommandLineError(
                f"`{name}` is tied to another tensor, which alone is stored",
                hint=f"`reallm inspect {opened.path} {tie}` shows it",
            )
        known = [
            *opened.plan.by_name,
            *(tensor.name.removesuffix(".weight") for tensor in opened.plan.tensors),
            *(file.path for file in opened.plan.files),
        ]
        raise CommandLineError(
            f"the archive holds nothing called `{name}`",
            location=opened.path,
            hint=did_you_mean(nearest(name.removesuffix(".weight"), known))
            or f"`reallm inspect {opened.path} --json` lists every name",
        )
    if as_json:
        terminal.json(section_json(entry))
    else:
        show_sections(terminal, (entry,))
