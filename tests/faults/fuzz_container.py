"""Opens many damaged and hostile archives and checks that nothing gets through.

    python tests/faults/fuzz_container.py [--count 100000] [--seed 0]

Each mutant comes from an accepted vector. A third is changed as raw bytes; a third in the bytes of
the manifest, with lengths and digest repaired; a third in the manifest's content, encoded anew
and often with its sections placed anew, so that the rules behind the digest are reached. Each is
opened, verified and read whole. Allowed is a result or a FormatError. A failure is anything else,
more memory than the file's size and 64 MiB, or more than ten seconds of work on one file.
Printed: how often each rule was the one that refused, the peak of memory and the slowest file.
"""

from __future__ import annotations

import copy
import faulthandler
import random
import struct
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

from reallm_formats import Archive, FormatError, ReallmError, encode_manifest
from tests.faults.fuzzing import Outcome, edit, run
from vectors import forge

VECTORS = Path(forge.__file__).parent
MEMORY = 64 << 20
SECONDS = 10.0  # of processor time
HANG_S = 600


def seeds() -> list[bytes]:
    """The accepted vectors."""
    files = sorted((VECTORS / "accepted").glob("*.bin"))
    return [path.read_bytes() for path in files]


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """`count` files that somebody damaged or made with bad intent; the same for the same seed."""
    draw = random.Random(seed)
    originals = seeds()
    ways = (raw, manifest_bytes, manifest_content)
    for number in range(count):
        yield ways[number % len(ways)](draw, draw.choice(originals))


def raw(draw: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut, repeated or added anywhere."""
    changed = scramble(draw, data)
    if draw.random() < 0.5 and len(changed) >= 128:
        start = draw.choice((8, 10, 12, 16, 24))
        changed[start : start + 2] = draw.randbytes(2)
    return bytes(changed)


def manifest_bytes(draw: random.Random, data: bytes) -> bytes:
    """The encoded manifest changed; header and digest fit it."""
    encoded, body = split(data)
    return forge.join(bytes(scramble(draw, encoded)), body, header={"minor": draw.choice((0, 1))})


def manifest_content(draw: random.Random, data: bytes) -> bytes:
    """The manifest's content changed and encoded well, or nearly."""
    encoded, body = split(data)
    manifest = msgpack.unpackb(encoded)
    before = copy.deepcopy(manifest)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        edit(draw, manifest)
    sort = draw.random() < 0.95
    if draw.random() < 0.6 and isinstance(manifest, dict):
        again = replace(draw, manifest, before, body, 128 + len(encoded))
        if again is not None:
            return again
    changed = forge.pack(manifest) if sort else msgpack.packb(manifest, use_bin_type=True)
    return forge.join(changed, body, header={"minor": draw.choice((0, 0, 1))})


def replace(
    draw: random.Random, manifest: Any, before: Any, body: bytes, start: int
) -> bytes | None:
    """The file with offsets and digests that fit the changed table, if they can be made to."""
    datas = []
    for old in before["sections"]:
        end = next((s["offset"] for s in before["sections"] if s["offset"] > old["offset"]), None)
        datas.append(body[old["offset"] - start : None if end is None else end - start][:64])
    try:
        forge.set_offsets(manifest, datas)
        encoded = forge.pack(manifest)
        rest = forge.body_of(manifest["sections"], datas, 128 + len(encoded))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return forge.join(encoded, rest, header={"minor": draw.choice((0, 0, 1))})


def split(data: bytes) -> tuple[bytes, bytes]:
    """Encoded manifest, and all that follows it."""
    end = 128 + struct.unpack_from("<Q", data, 16)[0]
    return data[128:end], data[end:]


def scramble(draw: random.Random, data: bytes) -> bytearray:
    """A few random changes of bytes."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at = draw.randrange(len(changed) + 1)
        size = draw.choice((1, 1, 2, 4, 9, 64))
        way = draw.randrange(7)
        if way == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif way == 1:
            changed[at : at + size] = draw.randbytes(size)
        elif way == 2:
            changed[at:at] = draw.randbytes(size)
        elif way == 3:
            del changed[at : at + size]
        elif way == 4:
            changed[at : at + size] = changed[:size]
        elif way == 5:
            changed[at : at + 5] = draw.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6")) + b"\xff" * 4
        else:
            changed[at : at + 1] = bytes([draw.choice((0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xCA, 0xD4))])
    return changed


def attempt(data: bytes, file: Path | None = None) -> str | None:
    """Open, verify and read a file whole: the rule that refused it, or None."""
    if file is not None:
        file.write_bytes(data)
    try:
        archive = Archive.open(file) if file is not None else Archive(memoryview(data))
    except FormatError as error:
        return error.rule
    with archive:
        damages = archive.verify()
        for name in archive.sections:
            try:
                archive.read(name)
            except FormatError as error:
                if error.rule not in {damage.rule for damage in damages}:
                    raise AssertionError(f"read found {error.rule}, verify did not") from error
        if not damages and archive.header.minor == 0:
            start, size = 128, archive.header.manifest_bytes
            if encode_manifest(archive.manifest) != data[start : start + size]:
                raise AssertionError("an accepted manifest is not canonical")
        document = getattr(archive, archive.kind)
        document.plain()
    return damages[0].rule if damages else None


def fuzz(count: int, seed: int, folder: Path, *, files_every: int = 50) -> Outcome:
    """Try `count` mutants; every `files_every`-th goes through a file on the disk."""
    outcome = Outcome()
    tracemalloc.start()
    for number, data in enumerate(mutants(count, seed)):
        if number % 1000 == 0:
            faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.__stderr__)
        file = folder / "mutant.bin" if number % files_every == 0 else None
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        start = time.process_time()  # not the wall: a busy machine is not the reader's fault
        try:
            rule = attempt(data, file)
        except Exception as error:  # any other error is what is looked for
            rule = None
            kind = "ReallmError" if isinstance(error, ReallmError) else type(error).__name__
            outcome.findings.append(f"mutant {number}: {kind}: {error}")
        elapsed = time.process_time() - start
        used = tracemalloc.get_traced_memory()[1] - before
        if used > len(data) + MEMORY:
            outcome.findings.append(f"mutant {number}: {used} bytes for a file of {len(data)}")
        outcome.peak_bytes = max(outcome.peak_bytes, used)
        outcome.slowest_s = max(outcome.slowest_s, elapsed)
        if rule is None:
            outcome.intact += 1
        else:
            outcome.counts[rule] += 1
    faulthandler.cancel_dump_traceback_later()
    tracemalloc.stop()
    if outcome.slowest_s > SECONDS:
        outcome.findings.append(f"a file took {outcome.slowest_s:.1f} s")
    return outcome


def main() -> int:
    """Run and print; 1 if anything was found."""
    return run(fuzz, __doc__, count=100_000)


if __name__ == "__main__":
    sys.exit(main())
