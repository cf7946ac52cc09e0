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

import torch
from torch import Tensor

from reallm_compiler.checkpoint.paths import parse_json
from reallm_compiler.errors import FinetuneError
from reallm_compiler.finetune.blockwise import BlockWise, plain_of
from reallm_compiler.finetune.end_to_end import EndToEnd, checkpointed, steps_of
from reallm_compiler.finetune.events import (
    BatchDone,
    BlockDone,
    Event,
    FinetuneReport,
    MatricesWritten,
    Started,
    TensorsRead,
)
from reallm_compiler.finetune.memory import estimate
from reallm_compiler.finetune.options import FinetuneOptions, options_from
from reallm_compiler.finetune.original import Original
from reallm_compiler.finetune.processes import Processes, local_device, together
from reallm_compiler.finetune.sharding import Shards
from reallm_compiler.finetune.state import State
from reallm_compiler.finetune.store import write_adapter, write_model
from reallm_compiler.finetune.text import check_number, split
from reallm_compiler.models.blocks import Block, UnfitBlocksError, find_blocks
from reallm_compiler.models.sequences import Sequences, as_paths, cut, read_texts
from reallm_compiler.models.text import window_of
from reallm_compiler.models.text_models import check_predicts_text, check_reads, usable_positions
from reallm_compiler.planning.document import fixed_text
from reallm_compiler.planning.learnable import learnable_sections
from reallm_compiler.planning.tuned import to_provenance
from reallm_compiler.progress import OnProgress, Progress, progress_callback
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

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
        shard: under torchrun, share out the frozen weights of the blocks among the processes while
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
            "packed weights are not shared out",
            hint="leave out `--packed`, or `--shard`: packed weights take the memory of the file",
        )
    target = Path(output).absolute()
    paths = as_paths(text)
    with contextlib.ExitStack() as stack:
        own_device = partial(choose_device, local_device(device), FinetuneError)
        processes = stack.enter_context(together(own_device))
        chosen_device = processes.device
        shown = processes.leads and (on_event is None if progress is None else progress)
        emit = _counted(shown, on_event if processes.leads else None)
        if processes.leads:
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
        check_predicts_text(archive_files(base))
        if processes.leads:
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
            dtype=_DTYPES[chosen.precision],
            progress=_reading("archive", emit),
            learn=chosen.learn,
        )
        tunable.forget_own()
        train, held = _sequences(tunable, texts, chosen)
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
        loaded = None if resume == "never" else state.load()
        found = None
        if loaded is not None:
            found = loaded[:2]
            original.check_read(loaded[2])
        elif resume == "required":
            raise no_interrupted_run(target)
        shard = shard and processes.count > 1
        if "e2e" in chosen.stages:
            pieces = chosen.e2e.accumulation
            processes.check_pieces(pieces, "e2e.accumulation", evenly=shard)
        wanted = "block" in chosen.stages or chosen.checkpointing or shard
        stack.enter_context(_blocks_as_refusals())
        modules = find_blocks(tunable.model, tunable.layers) if wanted else []
        shards = Shards(tunable, modules, processes, wanted=shard)
        parallel = processes.count if shard else 1
        _start(emit, base, mode, tunable, modules, train, held, chosen, found, parallel)
        blocks, end = _stages(
            tunable, modules, original, train, held, chosen, state, found, emit, processes, shards
        )
        parts = shards.parts()
        own = adapter is None and not {"factors", "gains", "rows", "columns"} & tunable.learn
        tuned = {} if own else {name: part for name, part in parts.items() if part}
        replaced = carried | {name: one.stored() for name, one in tunable.learned.items()}
        record = to_provenance(
            [(block.before, block.after) for block in blocks],
            end.losses if end is not None else (),
        )
        if not processes.leads:
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
        if processes.leads:
            state.remove()
    return FinetuneReport(
        path=str(target),
        blocks=tuple(blocks),
        before=end.before if end is not None else None,
        after=end.least if end is not None else None,
        rounding_error=error,
        file_bytes=size,
        seconds=time.monotonic() - began,
        steps_per_second=end.speed if end is not None else None,
    )


@contextlib.contextmanager
def _blocks_as_refusals() -> Iterator[None]:
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


def _stages(
    tunable: TunableModel,
    modules: list[Block],
    original: Original,
    train: Sequences,
    held: Sequences,
    options: FinetuneOptions,
    state: State,
    found: tuple[dict[str, Any], dict[str, torch.Tensor]] | None,
    emit: Callable[[Event], None],
    processes: Processes,
    shards: Shards,
) -> tuple[list[BlockDone], EndToEnd | None]:
    """Both stages, or one, from where an earlier run stood."""
    position, tensors = found if found is not None else ({}, {})
    with torch.no_grad():
        for name, parameter in tunable.parameters():
            if f"tuned/{name}" in tensors:
                parameter.copy_(tensors[f"tuned/{name}"])
    in_end = position.get("stage") == "e2e"
    blocks = [BlockDone(**entry) for entry in position.get("blocks", [])]
    if "block" in options.stages and not in_end:
        stage = BlockWise(
            tunable,
            modules,
            original,
            train,
            held,
            options.block,
            options.seed,
            _DTYPES[options.precision],
            state,
            emit,
            processes,
        )
        blocks = stage.run(position, tensors)
    if "e2e" not in options.stages:
        return blocks, None
    teacher = None
    if options.e2e.loss == "distill":
        teacher = original.teacher(
            torch.device(tunable.model.device),
            _DTYPES[options.precision],
            _reading("original", emit),
        )
    for _, parameter in tunable.parameters():
        parameter.requires_grad_(True)
    shards.share_out(teacher)
    end = EndToEnd(
        tunable,
        teacher,
        train,
        held,
        options.e2e,
        options.seed,
        state,
        emit,
        processes,
        evenly=shards.active,
    )
    with checkpointed(modules, options.checkpointing):
        end.run(position if in_end else {}, tensors, [plain_of(entry) for entry in blocks])
    return blocks, end


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


def _start(
    emit: Callable[[Event], None],
    base: ModelArchive,
    mode: Mode,
    tunable: TunableModel,
    modules: list[Block],
    train: Sequences,
    held: Sequences,
    options: FinetuneOptions,
    found: tuple[dict[str, Any], dict[str, torch.Tensor]] | None,
    shards: int,
) -> None:
    resumed = None
    if found is not None:
        position = found[0]
        resumed = (
            f"end to end, step {position['step']}"
            if position["stage"] == "e2e"
            else f"block {position.get('block', len(position['blocks']))}"
        )
    count = min(len(train), options.block.sequences)
    batch = min(options.block.batch * options.block.accumulation, count)
    each = options.block.epochs * (count // batch)
    block_steps = each if "block" in options.stages else 0
    end_steps = steps_of(options.e2e, len(train)) if "e2e" in options.stages else 0
    emit(
        Started(
            memory=estimate(
                base.plan,
                config_of(base),
                options,
                len(train) + len(held),
                packed=mode == "packed",
                shards=shards,
            ),
            matrices=len(tunable.layers),
            parameters=sum(value.numel() for _, value in tunable.parameters()),
            sequences=len(train),
            held_out=len(held),
            tokens=train.predicted,
            blocks=len(modules),
            steps=len(modules) * block_steps + end_steps,
            block_steps=block_steps,
            resumed=resumed,
        )
    )


def config_of(archive: ModelArchive) -> dict[str, Any]:
    """The config.json inside an archive.

    Raises:
        FinetuneError: it holds none.
        SourceError: it is no JSON mapping.
    """
    for name, data in archive.files():
        if name == "config.json":
            return parse_json(data, f"{archive.path}: {name}")
    raise FinetuneError("the archive holds no config, so there is no model to tune")


def _counted(
    progress: Progress, on_event: Callable[[Event], None] | None
) -> Callable[[Event], None]:
    """What is called with every event, and reports the steps among them as progress."""
    count = progress_callback(progress, "finetune", "steps")
    loads = {
        model: progress_callback(progress is True, f"load the {model}", "tensors")
        for model in ("archive", "original")
    }
    writes = progress_callback(progress is True, "write", "matrices")
    forward = on_event or _ignore_event
    total = each = 0

    def emit(event: Event) -> None:
        nonlocal total, each
        if isinstance(event, TensorsRead):
            loads[event.model](event.done, event.total)
        elif isinstance(event, Started):
            total, each = event.steps, event.block_steps
        elif isinstance(event, BatchDone):
            passes = max(0, event.epoch - 1)
            step = event.batch if event.epoch else 0
            count(event.block * each + passes * event.batches + step, total)
        elif isinstance(event, BlockDone):
            count((event.block + 1) * each, total)
        elif isinstance(event, MatricesWritten):
            writes(event.done, event.total)
        else:
            count(total - event.steps + event.step, total)
        forward(event)

    return emit


def _reading(model: str, emit: Callable[[Event], None]) -> OnProgress:
    """What is called with how many tensors of a model have been read."""
    return lambda done, total: emit(TensorsRead(model=model, done=done, total=total))


def _ignore_event(event: Event) -> None:
    """Does nothing with an event."""
