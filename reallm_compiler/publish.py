"""How an output appears: written beside its name, forced onto the disk, renamed in one step.

    NAME.partial    the file that is being written; for a folder, the folders `new` and `old` in it
    NAME.journal    the lock of the output, and of a compile also the record of what is done

An error leaves neither. A run that is killed leaves them, and the next run of the same output
clears them, or puts back what stood under the name.

A file is replaced only when asked for. A folder is replaced only when asked for and if everything
in it was written by reallm: each folder holds a list of its files (`.reallm.json`), and whatever is
not in the list, has another length or was changed later than the list was not written by reallm.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reallm_compiler.errors import OutputError
from reallm_formats.system import CLOEXEC, lock, sync_path
from reallm_formats.v1 import MAGIC

LIST = ".reallm.json"
"""The list of the files of a folder, written last."""


def partial_of(path: Path) -> Path:
    """What is written before it becomes `path`."""
    return path.with_name(path.name + ".partial")


def journal_of(path: Path) -> Path:
    """The lock of `path`."""
    return path.with_name(path.name + ".journal")


def open_locked(path: Path) -> int:
    """Open or create a lock file and lock it, until the descriptor is closed.

    Raises:
        OutputError: another process holds it, or nothing can be written or locked there.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | CLOEXEC, 0o644)
        except OSError as error:
            raise OutputError(
                f"cannot write here: {error.strerror}", location=str(path.parent)
            ) from error
        try:
            held = lock(descriptor)
        except OSError as error:
            if not os.fstat(descriptor).st_size:
                path.unlink(missing_ok=True)
            os.close(descriptor)
            raise OutputError(
                f"cannot lock a file here: {error.strerror or error}",
                location=str(path),
                note="without a lock two runs could write the same output",
                hint="choose an output on another file system",
            ) from error
        if not held:
            os.close(descriptor)
            raise OutputError(
                "another run is writing this output",
                location=str(path).removesuffix(".journal"),
                hint="wait for it to end, or choose another output",
            )
        # The holder before us may have removed the file between our open and our lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


@contextmanager
def locked_output(path: Path) -> Iterator[None]:
    """The lock of an output, the same that a compile takes; nothing of it stays.

    Raises:
        OutputError: another run writes this output, or an interrupted compile of it may go on.
    """
    journal = journal_of(path)
    descriptor = open_locked(journal)
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            interrupted = b"\n" in file.read()  # a torn first line is no record
        if interrupted:
            raise OutputError(
                "an interrupted compile of this output can still be resumed",
                location=str(path),
                hint=f"finish it, choose another output, or delete `{journal.name}`",
            )
        try:
            yield
        finally:
            journal.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def check_file(path: Path, *, force: bool) -> None:
    """A file can be written under this name.

    Raises:
        OutputError: the folder is missing or read-only, or the file is there without `force`.
    """
    _check_parent(path)
    if path.is_dir():
        raise OutputError("the output is a folder", location=str(path))
    if path.exists() and not force:
        raise OutputError(
            "the output exists already",
            location=str(path),
            hint="choose another name with `-o`, or overwrite it with `--force`",
        )


def refuse_inputs(path: Path, *inputs: str | os.PathLike[str] | None) -> None:
    """An output is none of the files that it is made of, nor part of a folder that it is made of.

    Raises:
        OutputError: it would replace an input.
    """
    for given in inputs:
        if given is None or not path.exists() or not os.path.exists(given):
            continue
        inside = os.path.isdir(given) and Path(given).resolve() in path.resolve().parents
        if os.path.samefile(path, given) or (inside and not _is_ours(path)):
            raise OutputError(
                "the output would replace an input",
                location=str(path),
                hint="choose another name with `-o`",
            )


def _is_ours(path: Path) -> bool:
    """Whether a file begins as an archive does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """Where to write a file, which appears as `path` when the block ends well.

    Raises:
        OutputError: as `check_file` and `locked_output`, or the disk refuses.
    """
    check_file(path, force=force)
    with locked_output(path), whole_file(path, force=force) as partial:
        yield partial


@contextmanager
def whole_file(path: Path, *, force: bool) -> Iterator[Path]:
    """`new_file` for a run that holds the lock of `path` already."""
    check_file(path, force=force)
    clear_partial(path)
    partial = partial_of(path)
    try:
        yield partial
        sync_path(partial)
        put(partial, path)
    except OSError as error:
        raise _refused(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def put(partial: Path, path: Path) -> None:
    """Rename what is whole and on the disk to its name, durably."""
    os.replace(partial, path)
    sync_path(path.parent)


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """An empty folder to fill, which appears as `path` when the block ends well.

    Args:
        path: the folder; where it is a symbolic link, that to which it leads.
        force: replace a folder that holds nothing but what reallm wrote.

    Raises:
        OutputError: it is there without `force`, or holds what reallm did not write; another run
            writes it; the disk refuses.
    """
    path = Path(os.path.realpath(path))
    _check_parent(path)
    with locked_output(path):
        new, old = partial_of(path) / "new", partial_of(path) / "old"
        _put_back(old, path)  # a run was killed between its two renames
        clear_partial(path)
        _check_folder(path, force=force)
        try:
            new.mkdir(parents=True)
            yield new
            _list_files(new)
            for entry in (*new.rglob("*"), new):
                sync_path(entry)
            if path.exists():
                os.replace(path, old)
            os.replace(new, path)
            sync_path(path.parent)
        except OSError as error:
            raise _refused(error, path) from error
        finally:
            _put_back(old, path)
            clear_partial(path)


def clear_partial(path: Path) -> None:
    """Remove what a killed run of this output has left under NAME.partial.

    Raises:
        OutputError: a folder of this name was not left by such a run.
    """
    partial = partial_of(path)
    if not partial.is_dir() or partial.is_symlink():
        partial.unlink(missing_ok=True)
        return
    if {entry.name for entry in partial.iterdir()} - {"new", "old"}:
        raise OutputError(
            "a folder stands where the output is to be written",
            location=str(partial),
            hint="rename it, or choose another name with `-o`",
        )
    shutil.rmtree(partial)


def _put_back(old: Path, path: Path) -> None:
    if old.exists() and not path.exists():
        os.replace(old, path)


def _check_parent(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(
            "the output folder does not exist",
            location=str(folder),
            hint=f"create it: `mkdir -p {folder}`",
        )
    if not os.access(folder, os.W_OK):
        raise OutputError("the output folder is read-only", location=str(folder))


def _check_folder(path: Path, *, force: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError("the output is a file, not a folder", location=str(path))
    if not force:
        raise OutputError(
            "the output exists already",
            location=str(path),
            hint="choose another folder with `-o`, or replace one that reallm wrote with `--force`",
        )
    foreign = foreign_file(path)
    if foreign is not None:
        raise OutputError(
            f"the folder holds what reallm did not write (`{foreign}`), so it is not replaced",
            location=str(path),
            note="`--force` replaces only a folder in which every file is as reallm wrote it",
            hint="choose another folder with `-o`, or remove this one yourself",
        )


def _list_files(folder: Path) -> None:
    """Write the list of the files of a folder."""
    files = {
        str(entry.relative_to(folder)): entry.stat().st_size
        for entry in sorted(folder.rglob("*"))
        if entry.is_file()
    }
    text = json.dumps({"written by": "reallm", "files": files}, indent=1) + "\n"
    (folder / LIST).write_text(text, encoding="utf-8")


def foreign_file(folder: Path) -> str | None:
    """The first entry of a folder that is not as reallm wrote it; None if there is none."""
    entries = sorted(folder.rglob("*"))
    files, written = {}, 0
    with suppress(OSError, ValueError, KeyError, TypeError):
        written = (folder / LIST).stat().st_ctime_ns
        files = dict(json.loads((folder / LIST).read_text(encoding="utf-8"))["files"])
        files[LIST] = (folder / LIST).stat().st_size
    known = set(files) | {str(parent) for name in files for parent in Path(name).parents}
    for entry in entries:
        name, facts = str(entry.relative_to(folder)), entry.lstat()
        if name not in known:
            return name
        # A file that was written in place or moved here has a later time of change.
        if name in files and not (
            stat.S_ISREG(facts.st_mode)
            and facts.st_size == files[name]
            and max(facts.st_ctime_ns, facts.st_mtime_ns) <= written
        ):
            return name
    return None


def _refused(error: OSError, path: Path) -> OutputError:
    return OutputError(f"cannot write: {error.strerror or error}", location=str(path))
