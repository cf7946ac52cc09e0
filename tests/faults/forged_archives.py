"""Archives as somebody might forge them: digests right, content drawn at random, then changed.

Each starts as a small Llama, or as matrices and stacks without a config, coded by plans of any
kinds that go together, its sections filled with values that have a meaning. Then something in it is
changed, mostly: the document, a plan, the values of a section, an embedded file, the table.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.matrix import layout_of
from reallm_compiler.storage.sparse import SparseIndex
from reallm_compiler.storage.values import Ones, Order
from reallm_formats.dtypes import BITS, CODES, FLOATS, section_bytes
from tests.faults.fuzzing import HOSTILE, edit, walk
from tests.plans import some_plan
from vectors import forge

Plain = dict[str, Any]
Section = tuple[str, str, list[int], bytes]

CONFIG: Plain = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}
LAYER = "model.layers.0."
KEPT = {
    "model.embed_tokens.weight": (32, 16),
    "model.norm.weight": (16,),
    f"{LAYER}input_layernorm.weight": (16,),
    f"{LAYER}post_attention_layernorm.weight": (16,),
}
LINEAR = {
    f"{LAYER}self_attn.q_proj": (16, 16),
    f"{LAYER}self_attn.k_proj": (8, 16),
    f"{LAYER}self_attn.v_proj": (8, 16),
    f"{LAYER}self_attn.o_proj": (16, 16),
    f"{LAYER}mlp.gate_proj": (24, 16),
    f"{LAYER}mlp.up_proj": (24, 16),
    f"{LAYER}mlp.down_proj": (16, 24),
}


def meaningful(draw: random.Random, spec: SectionSpec) -> bytes:
    """Bytes of a section that obey its value rule."""
    rng = np.random.default_rng(draw.getrandbits(32))
    count = int(np.prod(spec.shape))
    if isinstance(spec.values, Order | Ones | SparseIndex):
        if isinstance(spec.values, Ones):
            codes = rng.permutation(np.arange(count) < spec.values.count)
        elif isinstance(spec.values, SparseIndex):
            codes = sparse_codes(rng, spec.values, CODES[spec.dtype])
        else:
            codes = np.concatenate([rng.permutation(spec.shape[1]) for _ in range(spec.shape[0])])
        places = np.arange(CODES[spec.dtype])
        return np.packbits((codes[:, None] >> places) & 1, bitorder="little").tobytes()
    if spec.dtype in FLOATS:
        return floats(np.abs(rng.normal(size=count)) * 0.2 + 0.01, spec.dtype)
    data = bytearray(rng.bytes(section_bytes(spec.dtype, spec.shape)))
    spare = -count * BITS[spec.dtype] % 8
    if spare:
        data[-1] &= 0xFF >> spare
    return bytes(data)


def sparse_codes(rng: np.random.Generator, rule: SparseIndex, bits: int) -> np.ndarray:
    """Counts of rows and columns of kept weights, wherever these lie."""
    p, q = rule.shape
    most = min(q, 2**bits - 1)
    kept = np.zeros((p, most), dtype=bool)
    for block, wanted in enumerate(rule.counts):
        rows = kept[block * rule.rows : (block + 1) * rule.rows]
        rows.flat[rng.choice(rows.size, wanted, replace=False)] = True
    return np.concatenate([kept.sum(1), np.nonzero(kept)[1]])


def floats(values: Any, dtype: str) -> bytes:
    """Numbers as a section of a type of floats stores them, cut and not rounded."""
    if dtype in ("f16", "f64"):
        return np.asarray(values).astype({"f16": "<f2", "f64": "<f8"}[dtype]).tobytes()
    single = np.asarray(values).astype("<f4")
    if dtype == "bf16":
        return (single.view("<u4") >> 16).astype("<u2").tobytes()
    return single.tobytes() if dtype == "f32" else bytes([0x30]) * single.size


def some_archive(draw: random.Random) -> tuple[Plain, list[Section]]:
    """Document and sections of an archive that means something."""
    dtype = draw.choice(("f32", "f32", "bf16", "f16", "f64"))
    model = draw.random() < 0.6
    shapes: dict[str, tuple[int, int]] = dict(LINEAR)
    rows: list[Plain] = []
    if not model:
        shapes = {f"m{n}": draw.choice(((1, 1), (2, 13), (16, 1), (5, 5))) for n in range(2)}
    named = [(name, f"{name}.weight", None, shape) for name, shape in shapes.items()]
    if not model:
        stack = draw.choice(((3, 4), (8, 8)))
        named += [(f"e.{n}", "e", n, stack) for n in range(2)]
    extents = {shape for *_, shape in named}
    groups = [f"g/../{n}" for n in range(draw.choice((1, 1, 3)))]
    plain = [fitting_plan(draw, group, extents, dtype).plain() for group in groups]
    turned = not model and draw.random() < 0.3
    for name, tensor, index, shape in named:
        rows.append(
            {
                "name": name,
                "shape": list(shape),
                "dtype": dtype,
                "tensor": tensor,
                "index": index,
                "transposed": turned,
                "method": draw.randrange(len(plain)),
                "relative_error": draw.random(),
            }
        )
    for index in range(len(plain)):  # each is used
        rows[index]["method"] = index
    sections: list[Section] = []
    if model:
        text = json.dumps(CONFIG).encode()
        sections.append(("file:config.json", "u8", [len(text)], text))
    for name, extents in KEPT.items() if model else [("bias", (3,))]:
        values = np.random.default_rng(0).normal(size=extents)
        sections.append((f"tensor:{name}", "f32", list(extents), floats(values, "f32")))
    document = {
        "recipe": {"reallm": 1, "rules": [{"match": "*.q_proj", "note": "a\x1b[2J\nb"}]},
        "methods": plain,
        "matrices": rows,
        "ties": {"lm_head.weight": "model.embed_tokens.weight"} if model else {},
        "provenance": {"compute": "x\x1b]0;title\x07\u202e\nintact", "source": bytes(32)},
    }
    fill(draw, document, sections)
    return document, sections


def fitting_plan(
    draw: random.Random, share: str, shapes: Iterable[tuple[int, int]], dtype: str
) -> MatrixPlan:
    """A plan that can code matrices of all these shapes."""
    while True:
        plan = some_plan(draw, share)
        if all(layout_of(plan, shape, dtype).refusal is None for shape in shapes):
            return plan


def fill(draw: random.Random, document: Plain, sections: list[Section]) -> None:
    """The sections that the document's plans ask for, behind those that are there."""
    known = {name for name, *_ in sections}
    for row in document["matrices"]:
        plan = MatrixPlan.model_validate(document["methods"][row["method"]])
        shared, own = [], []
        for spec in layout_of(plan, (row["shape"][0], row["shape"][1]), row["dtype"]).sections:
            owner = f"share:{plan.share}" if spec.shared else f"matrix:{row['name']}"
            name = f"{owner}/{spec.role}"
            if name in known:
                continue
            known.add(name)
            made = (name, spec.dtype, list(spec.shape), meaningful(draw, spec))
            (shared if spec.shared else own).append(made)
        sections += shared + own


def change_document(draw: random.Random, document: Plain, sections: list[Section]) -> None:
    """Any value of the document becomes another."""
    for _ in range(draw.choice((1, 1, 2))):
        edit(draw, document)


def change_plan(draw: random.Random, document: Plain, sections: list[Section]) -> None:
    """Another value somewhere in a plan or a row, and sections that fit it where they can."""
    parts = [document.get(key) for key in ("methods", "matrices")]
    places = [index for part in parts if isinstance(part, dict | list) for index in walk(part)]
    if not places:
        return
    holder, key = draw.choice(places)
    edges = (0, 1, 2, 3, 4, 8, 16, 64, 512, 4096, 65536, 1 << 31, None, True, "all", "1/64", "row")
    holder[key] = copy.deepcopy(draw.choice((*edges, [1, 1, 1], [4, 4], *HOSTILE)))
    kept = [part for part in sections if part[0].startswith(("file:", "tensor:"))]
    with contextlib.suppress(Exception):  # such a plan has no sections: the old ones stay
        if sum(row["shape"][0] * row["shape"][1] for row in document["matrices"]) < 1 << 22:
            fill(draw, document, kept)
            if sum(len(data) for *_, data in kept) < 1 << 24:
                sections[:] = kept


def change_values(draw: random.Random, document: Plain, sections: list[Section]) -> None:
    """Some bytes of a section become others."""
    index = draw.randrange(len(sections))
    name, dtype, shape, data = sections[index]
    size = min(len(data), draw.choice((1, 2, 4, 8, 1 << 20)))
    at = draw.randrange(len(data) - size + 1)
    nan, most = struct.pack("<f", float("nan")), struct.pack("<f", 3e38)
    filler = draw.choice((b"\0", b"\xff", b"\x00\x7e", b"\x00\x7c", b"\xff\x7b", nan, most))
    value = draw.choice((draw.randbytes(size), (filler * size)[:size]))
    sections[index] = (name, dtype, shape, data[:at] + value + data[at + size :])


def change_file(draw: random.Random, document: Plain, sections: list[Section]) -> None:
    """Another config, or one file more."""
    if not sections[0][0].startswith("file:") or draw.random() < 0.3:
        names = ("../x", "a.json", "con.json", "A.JSON", "tokenizer.json", "tokenizer_config.json")
        data = draw.choice((b"{}", b"[" * 100_000, b"\xff", b"null"))
        sections.insert(0, (f"file:{draw.choice(names)}", "u8", [len(data)], data))
        return
    config = copy.deepcopy(CONFIG)
    edges = (0, -1, 1, 7, 17, 64, 10**9, 1 << 62, None, "x", 0.5, [], {}, True, "../x")
    config[draw.choice([*CONFIG, "head_dim", "rope_scaling", "auto_map"])] = draw.choice(edges)
    text = json.dumps(config).encode()
    sections[0] = (sections[0][0], "u8", [len(text)], text)


def change_table(draw: random.Random, document: Plain, sections: list[Section]) -> None:
    """A section goes, comes twice, or changes place, name or shape."""
    index = draw.randrange(len(sections))
    name, dtype, shape, data = sections[index]
    way = draw.randrange(5)
    if way == 0:
        del sections[index]
    elif way == 1:
        sections.insert(draw.randrange(len(sections)), (f"{name}x", dtype, shape, data))
    elif way == 2:
        sections.insert(draw.randrange(len(sections)), sections.pop(index))
    elif way == 3:
        sections[index] = (name, dtype, [*reversed(shape)], data)
    else:
        sections[index] = (draw.choice(sections)[0], dtype, shape, data)


Change = Callable[[random.Random, Plain, list[Section]], None]
CHANGES: tuple[Change, ...] = (
    change_document,
    change_plan,
    change_plan,
    change_values,
    change_file,
    change_table,
)


def mutant(seed: int) -> tuple[bytes, bool]:
    """An archive, and whether something in it was changed; the same for the same seed."""
    draw = random.Random(seed)
    document, sections = some_archive(draw)
    changes = [draw.choice(CHANGES) for _ in range(draw.choice((0, 1, 1, 1, 1, 2)))]
    for change in changes:
        change(draw, document, sections)
    return forge.archive(sections, document), bool(changes)
