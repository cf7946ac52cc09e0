"""Checkpoints in object stores, reached through fsspec: `s3://BUCKET/PATH`, `gs://...`, `file://...`.

Nothing is copied to this machine but headers and small files; weights are read by ranges of bytes
where they are needed. To learn what a store holds, its folder is mirrored: every file has its name
and its length, small files their content, and a shard its header, so that it is read by the rules
of any other folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint.carried import is_carried
from reallm_compiler.checkpoint.headers import HEADER_LIMIT
from reallm_compiler.checkpoint.paths import resolve_inside
from reallm_compiler.errors import SourceError

FIRST_BYTES = 1 << 20
"""Bytes of a shard that are read at first; most headers are shorter."""

DEPTH = 2
"""Files in folders of the checkpoint's folder are listed, and none below."""


def is_url(path: str) -> bool:
    """Whether a model's path is one in an object store."""
    return "://" in path


@contextmanager
def mirrored(url: str) -> Iterator[Path]:
    """A folder as the store's is, without the weights; it is removed when the block ends.

    Raises:
        SourceError: the store cannot be reached, or there is no such folder.
    """
    files, root = _store(url)
    with tempfile.TemporaryDirectory(prefix="reallm-") as made:
        folder = Path(made)
        with _readable(url):
            sizes: dict[str, int] = {
                path[len(root) :].lstrip("/"): int(facts["size"])
                for path, facts in files.find(root, maxdepth=DEPTH, detail=True).items()
            }
        if not sizes or "" in sizes:
            raise SourceError(
                "this is a file, not a folder" if sizes else "no such folder, or an empty one",
                location=url,
                hint="give the folder that holds config.json and the safetensors files",
            )
        for name, size in sizes.items():
            resolve_inside(folder, name)
            with _readable(f"{url}/{name}"):
                content = _content(files, f"{root}/{name}", name, size)
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
            os.truncate(folder / name, size)
        try:
            yield folder
        except SourceError as error:
            raise _of_store(error, made, url) from error


def _content(files: Any, path: str, name: str, size: int) -> bytes:  # noqa: ANN401
    """What is needed of a file to know the checkpoint."""
    if name.endswith(".safetensors"):
        start: bytes = files.cat_file(path, start=0, end=min(size, FIRST_BYTES))
        end = 8 + int.from_bytes(start[:8], "little")
        if len(start) < end <= min(size, 8 + HEADER_LIMIT):
            start += files.cat_file(path, start=len(start), end=end)
        return start[:end]
    if size <= HEADER_LIMIT and (is_carried(name) or name.endswith(".json")):
        whole: bytes = files.cat_file(path)
        return whole
    return b""


def open_shard(folder: str, shard: str) -> RawIOBase:
    """A shard of a checkpoint, to read ranges of bytes from.

    Args:
        folder: the checkpoint's, on this machine or in a store.
        shard: its name.

    Raises:
        OSError: it cannot be read.
    """
    if not is_url(folder):
        return open(Path(folder) / shard, "rb", buffering=0)
    files, root = _store(folder)
    # Each part is read once: nothing would be found in a cache.
    opened: RawIOBase = files.open(f"{root}/{shard}", "rb", cache_type="none")
    return opened


def shard_bytes(folder: str, shard: str) -> int:
    """Length of a shard.

    Raises:
        OSError: it cannot be read.
    """
    if not is_url(folder):
        return (Path(folder) / shard).stat().st_size
    files, root = _store(folder)
    return int(files.size(f"{root}/{shard}"))


def _store(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        SourceError: a library is not installed, or there is no such kind of store.
    """
    try:
        import fsspec

        files, root = fsspec.core.url_to_fs(url.rstrip("/"))
    except ImportError as error:
        first = str(error).strip().partition("\n")[0]
        raise SourceError(
            "a library for this store is not installed",
            location=url,
            note=first,
            hint="install `reallm-compiler[ray]`, and the library of the store: "
            "`s3fs` for s3://, `gcsfs` for gs://, `adlfs` for az://",
        ) from error
    except ValueError as error:
        raise SourceError(
            f"`{url.partition('://')[0]}` is no kind of store that is known",
            location=url,
            note=str(error),
            hint="use s3://, gs://, az://, or a path of this machine",
        ) from error
    return files, str(root).rstrip("/")


@contextmanager
def _readable(location: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError("no such file or folder", location=location) from error
    # Each store's library has errors of its own: a name that is not known, a lack of rights.
    except Exception as error:
        raise SourceError(
            "the store cannot be read",
            location=location,
            note=(str(error).strip().splitlines() or [type(error).__name__])[0][:300],
            hint="look at the address, and at your rights there",
        ) from error


def _of_store(error: SourceError, folder: str, url: str) -> SourceError:
    """An error about the mirror, as one about the store."""

    def named(text: str | None) -> str | None:
        return None if text is None else text.replace(folder, url.rstrip("/"))

    return SourceError(
        named(error.message) or "",
        location=named(error.location),
        note=named(error.note),
        hint=named(error.hint),
    )
