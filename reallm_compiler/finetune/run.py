"""A tuning run: archive + original + text -> adapter, or a new model archive.

Steps: (1) settings, text, sequences; (2) the state of an interrupted run; (3) block by block;
(4) end to end; (5) the file. A run that is killed goes on from its state and ends with the same
bytes. Under torchrun several processes share the work (`processes`); the first one writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from reallm_compiler.errors import FinetuneError
from reallm_compiler.finetune.events import Event, FinetuneReport, MatricesWritten
from reallm_compiler.finetune.memory import estimate
from reallm_compiler.finetune.options import FinetuneOptions, options_from
from reallm_compiler.finetune.original import Original
from reallm_compiler.finetune.processes import connected_processes, local_device
from reallm_compiler.finetune.progress import tensors_read, with_progress
from reallm_compiler.finetune.sharding import Shards
from reallm_compiler.finetune.stages import run_stages, started
from reallm_compiler.finetune.state import State
from reallm_compiler.finetune.store import write_adapter, write_model
from reallm_compiler.finetune.text import check_number, split
from reallm_compiler.finetune.tuning import DTYPES, Tuning
from reallm_compiler.models.blocks import UnfitBlocksError, find_blocks
from reallm_compiler.models.sequences import Sequences, as_paths, cut, read_texts
from reallm_compiler.models.text import window_of
from reallm_compiler.models.text_models import check_predicts_text, check_reads, usable_positions
from reallm_compiler.planning.document import fixed_text
from reallm_compiler.planning.learnable import learnable_sections
from reallm_compiler.planning.tuned import to_provenance
from reallm_compiler.progress import Progress
from reallm_compiler.publish import check_file, locked_output, refuse_inputs
from reallm_compiler.reader.adapter import open_adapter
from reallm_compiler.reader.archive import ModelArchive, open_archive
from reallm_compiler.reader.huggingface import archive_files
from reallm_compiler.runs.devices import choose_device
from reallm_compiler.runs.identity import machine_fields
from reallm_compiler.runs.numerics import fixed_numerics
from reallm_compiler.runs.resume import no_interrupted_run
from reallm_compiler.runs.stop import catch_signals
from reallm_compiler.runtime.mapped import Mode
from reallm_compiler.runtime.opening import open_tunable
from reallm_compiler.runtime.tunable import TunableModel


def finetune(
    archive: str | PathLike[str],
    *,
    model: str | PathLike[str],
    text: str | PathLike[str] | Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    options: FinetuneOptions | Mapping[str, Any] | None = None,
    mode: Mode = "dense",
    adapter: str | PathLike[str] | None = None,
    decoder: str | PathLike[str] | None = None,
    allow_cost: bool = False,
    into: bool = False,
    shard: bool = False,
    device: str = "cpu",
    resume: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> FinetuneReport:
    """Tune the factors and gains of an archive, and what else of its numbers is to be learned.

    Args:
        archive: the archive; it is not changed.
        model: the checkpoint that it was compiled from.
        text: UTF-8 file to tune on, or several.
        output: the adapter, or with `into` the model archive, to write.
        options: settings; a mapping is put over the `finetune` section of the archive's recipe,
            and that over the paper's.
        mode: `packed` leaves the coded parts as they are stored and computes from their codes: the
            frozen part of the model takes the memory of the file, and steps take longer.
        adapter: an adapter of the archive to begin with.
        decoder: where the trained decoders are that the archive uses but does not hold: a file, or
            a folder; beside the archive when None.
        allow_cost: decode it whatever its plan costs to decode; see `open_archive`.
        into: write a whole model archive.
        shard: under torchrun, shard the frozen weights of the blocks among the processes while
            the model is tuned end to end; they must be decoded (`dense`).
        device: `cpu`, `cuda` or `cuda:N`.
        resume: `auto` goes on where an interrupted run stood, `required` refuses to start
            afresh, `never` starts over.
        force: overwrite an existing output when the new one is finished.
        progress: see `reallm_compiler.progress`; counts steps of Adam, of which a run may need
            fewer than it could make. True when None, or False where `on_event` is given.
        on_event: is called with what happens.

    Raises:
        FinetuneError: nothing can be tuned, the text or the device is unfit, a loss is not finite,
            or processes differ or are lost.
        ResumeError: an interrupted run had other inputs.
        FormatError, SourceError, AdapterError, OutputError: see `reallm_compiler.errors`;
            `Interrupted` after SIGINT or SIGTERM.
    """
    began = time.monotonic()
    if shard and mode == "packed":
        raise FinetuneError(
            "packed weights cannot be sharded",
            hint="leave out `--packed`, or `--shard`: packed weights take the memory of the file",
        )
    target = Path(output).absolute()
    paths = as_paths(text)
    with contextlib.ExitStack() as stack:
        own_device = partial(choose_device, local_device(device), FinetuneError)
        processes = stack.enter_context(connected_processes(own_device))
        chosen_device = processes.device
        shown = processes.is_main and (on_event is None if progress is None else progress)
        emit = with_progress(shown, on_event if processes.is_main else None)
        if processes.is_main:
            check_file(target, force=force)
            refuse_inputs(target, archive, adapter, decoder, *paths)
        base = stack.enter_context(
            open_archive(archive, decoder=decoder, allow_cost=allow_cost, private=mode == "packed")
        )
        chosen = (
            options
            if isinstance(options, FinetuneOptions)
            else options_from(options, base.plan.recipe)
        )
        files = archive_files(base)
        check_predicts_text(files)
        if processes.is_main:
            stack.enter_context(locked_output(target))
        texts, text_digest = read_texts(paths, FinetuneError)
        stack.enter_context(fixed_numerics(chosen.threads, chosen_device))
        stop = stack.enter_context(catch_signals())
        original = Original(model, base)
        carried = _replaced_by(adapter, base)
        tunable = open_tunable(
            base,
            mode=mode,
            adapter=adapter,
            device=chosen_device,
            dtype=DTYPES[chosen.precision],
            progress=tensors_read("archive", emit),
            learn=chosen.learn,
        )
        tunable.forget_own()
        train, held_out = _sequences(tunable, texts, chosen)
        for _, parameter in tunable.parameters():
            parameter.requires_grad_(True)
        if not list(tunable.parameters()):
            raise FinetuneError(
                f"this archive has no {' and no '.join(chosen.learn)}, so nothing can be tuned",
                location=str(archive),
                hint="compile with a `low_rank` residual or with `dora: true`, or learn what any "
                "archive has: `--set learn=[scales,tables,norms]`",
            )
        identity = {
            "base": base.digest.hex() + (tunable.adapter or b"").hex(),
            "original": original.facts(),
            "text": text_digest.hex(),
            "options": chosen.plain(),
            "mode": mode,
            **machine_fields(chosen_device),
        }
        processes.check_same(identity)
        state = State(target, identity, original.read, stop, processes)
        saved = None if resume == "never" else state.load()
        if saved is not None:
            original.check_read(saved.read)
        elif resume == "required":
            raise no_interrupted_run(target)
        shard = shard and processes.count > 1
        if "e2e" in chosen.stages:
            pieces = chosen.e2e.accumulation
            processes.check_pieces(pieces, "e2e.accumulation", evenly=shard)
        wanted = "block" in chosen.stages or chosen.checkpointing or shard
        stack.enter_context(_unfit_to_error())
        modules = find_blocks(tunable.model, tunable.layers) if wanted else []
        tuning = Tuning(
            tunable=tunable,
            blocks=modules,
            original=original,
            train=train,
            held_out=held_out,
            options=chosen,
            state=state,
            processes=processes,
            shards=Shards(tunable, modules, processes, wanted=shard),
            emit=emit,
        )
        memory = estimate(
            base.plan,
            files.config,
            chosen,
            len(train) + len(held_out),
            packed=mode == "packed",
            shards=processes.count if shard else 1,
        )
        emit(started(tuning, memory, saved))
        blocks, end = run_stages(tuning, saved)
        parts = tuning.shards.parts()
        own = adapter is None and not {"factors", "gains", "rows", "columns"} & tunable.learn
        tuned = {} if own else {name: part for name, part in parts.items() if part}
        replaced = carried | {name: one.stored() for name, one in tunable.learned.items()}
        record = to_provenance(
            [(block.before, block.after) for block in blocks],
            end.losses if end is not None else (),
        )
        if not processes.is_main:
            size, error = 0, 0.0
        elif into:
            size, error = write_model(
                target,
                base,
                tuned,
                replaced,
                original,
                record=record,
                advance=lambda done, total: emit(MatricesWritten(done=done, total=total)),
                force=force,
            )
        else:
            size, error = write_adapter(
                target,
                base,
                tuned,
                replaced=replaced,
                factors=chosen.factors,
                settings=chosen.plain(),
                provenance={
                    "compute": fixed_text(str(identity["compute"])),
                    "reallm": fixed_text(str(identity["reallm"])),
                    "torch": fixed_text(str(identity["torch"])),
                    "text": text_digest,
                    **record,
                },
                force=force,
            )
        if processes.is_main:
            state.remove()
    return FinetuneReport(
        path=str(target),
        blocks=tuple(blocks),
        before=end.before if end is not None else None,
        after=end.least if end is not None else None,
        diverged=end.diverged if end is not None else None,
        rounding_error=error,
        file_bytes=size,
        seconds=time.monotonic() - began,
        steps_per_second=end.speed if end is not None else None,
    )


@contextlib.contextmanager
def _unfit_to_error() -> Iterator[None]:
    """Say of blocks that cannot be run one by one what that means for tuning."""
    try:
        yield
    except UnfitBlocksError as error:
        raise FinetuneError(
            "the blocks of this model cannot be tuned one by one",
            location=error.location,
            note=error.note,
            hint="tune end to end alone with `--stage e2e`",
        ) from error


def _replaced_by(adapter: str | PathLike[str] | None, base: ModelArchive) -> dict[str, Tensor]:
    """Sections of the base that an adapter replaces, as they are stored."""
    if adapter is None:
        return {}
    known = learnable_sections(base.plan)
    with open_adapter(adapter) as opened:
        base.use(opened)
        try:
            return {name: base.values(known[name]).clone() for name in opened.replaced}
        finally:
            base.use(None)


def _sequences(
    tunable: TunableModel, texts: list[str], options: FinetuneOptions
) -> tuple[Sequences, Sequences]:
    """Sequences to tune on and held-out ones."""
    if tunable.tokenizer is None:
        raise FinetuneError("the archive holds no tokenizer, so no text can be read")
    window = window_of(options.window, [usable_positions(tunable.model)], FinetuneError)
    sequences = cut(tunable.tokenizer, texts, window, options.separator, FinetuneError)
    check_number(sequences)
    first = sequences.ids[0, : int(sequences.lengths[0])].tolist()
    check_reads(tunable.model, first, int(sequences.ids.max()), FinetuneError)
    return split(sequences, options.held_out, options.seed)
