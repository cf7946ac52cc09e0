"""Makes the golden and the hostile files of this folder, and cases.json that lists them.

    python formats/vectors/make.py --write      (from the repository's root)

Nothing else writes here. The files of a released version are never made again: a change of one
of them is a change of the format.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vectors import hostile_bytes, hostile_documents, hostile_manifests
from vectors.forge import Plain, join
from vectors.golden import accepted

HERE = Path(__file__).resolve().parent
UNTESTABLE = {"F1": "it is about what is not a file: a test makes a folder, a pipe and no file"}


def rejected() -> Iterator[tuple[str, str, bytes, str]]:
    """Rule, name, bytes, and whether `open` or `verify` finds it."""
    for rule, name, data in hostile_bytes.headers():
        yield rule, name, data, "open"
    for rule, name, encoded in hostile_bytes.encodings():
        yield rule, name, join(encoded, b""), "open"
    manifests = (
        hostile_manifests.manifests,
        hostile_documents.models,
        hostile_documents.adapters,
        hostile_documents.decoders,
        hostile_documents.statistics_files,
    )
    for vectors in manifests:
        for rule, name, data in vectors():
            yield rule, name, data, "open"
    yield from hostile_bytes.sections()


def plain_json(value: object) -> Any:  # noqa: ANN401 (plain data)
    """Plain data as JSON can hold it: bytes as `{"hex": ...}`."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_json(item) for item in value]
    return value


def build() -> dict[str, bytes]:
    """Every file of this folder by its path, cases.json included."""
    import msgpack

    files: dict[str, bytes] = {}
    cases: Plain = {"accepted": [], "rejected": [], "untestable": UNTESTABLE}
    for name, data in accepted():
        path = f"accepted/{name}.bin"
        files[path] = data
        major, minor, _, length = struct.unpack_from("<HHIQ", data, 8)
        manifest = msgpack.unpackb(data[128 : 128 + length])
        normal = {
            "major": major,
            "minor": minor,
            "manifest_bytes": length,
            "file_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "manifest": plain_json(manifest),
        }
        cases["accepted"].append({"file": path, "normal": normal})
    for rule, name, data, found in rejected():
        path = f"rejected/{rule}-{name}.bin"
        files[path] = data
        cases["rejected"].append({"file": path, "rule": rule, "found": found})
    files["cases.json"] = (json.dumps(cases, indent=1, sort_keys=True) + "\n").encode()
    return files


def main() -> None:
    """Write the files, or say what would be written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the files of this folder")
    write = parser.parse_args().write
    files = build()
    for path, data in files.items():
        target = HERE / path
        if write:
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
    total = sum(map(len, files.values()))
    verb = "written" if write else "not written (give --write)"
    print(f"{len(files)} files, {total} bytes: {verb}")


if __name__ == "__main__":
    main()
