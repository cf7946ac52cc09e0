"""The container of compressed models: reading, writing and validating `.reallm` files.

SPEC.md is the specification. The package needs the standard library and msgpack, and knows nothing
of tensors in memory: a section is bytes of a named type and shape.
"""

from reallm_formats.closing import Closing
from reallm_formats.damage import Damage
from reallm_formats.dtypes import BITS, section_bytes
from reallm_formats.errors import FormatError, ReallmError
from reallm_formats.kinds.adapter import AdapterDocument, AdapterEntry, parse_adapter
from reallm_formats.kinds.model import MatrixEntry, ModelDocument, parse_model
from reallm_formats.kinds.statistics import (
    StatisticsDocument,
    StatisticsEntry,
    parse_statistics,
)
from reallm_formats.layout import Block, Layout, layout
from reallm_formats.manifest import Manifest, encode_manifest, parse_manifest
from reallm_formats.names import SectionName, parse_name
from reallm_formats.reader import Archive, Verify
from reallm_formats.sections import SectionEntry
from reallm_formats.writer import Writer

__all__ = [
    "BITS",
    "AdapterDocument",
    "AdapterEntry",
    "Archive",
    "Block",
    "Closing",
    "Damage",
    "FormatError",
    "Layout",
    "Manifest",
    "MatrixEntry",
    "ModelDocument",
    "ReallmError",
    "SectionEntry",
    "SectionName",
    "StatisticsDocument",
    "StatisticsEntry",
    "Verify",
    "Writer",
    "encode_manifest",
    "layout",
    "parse_adapter",
    "parse_manifest",
    "parse_model",
    "parse_name",
    "parse_statistics",
    "section_bytes",
]
