"""What a plain (unquoted) YAML scalar means in a recipe.

PyYAML follows YAML 1.1, where `1e-3` is text, `yes` is true, `010` is eight and `12:30` is 750. The
rules here have no such traps:

    null ~ (nothing)          null
    true false                truth values; `yes no on off` are text
    12 -3 0x1f 0o17           integers; 010 is ten
    2.5 1e-3 7.2e6 64.0       numbers; one whose value is whole is an integer
    1/64, .inf, 12:30, ...    text; fractions are read by the fields that take them
"""

from __future__ import annotations

import re
from fractions import Fraction

from reallm_compiler.recipe.nodes import MAX_INTEGER

_INTEGER = re.compile(r"[-+]?[0-9]+")
_PREFIXED = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE](?P<exponent>[-+]?[0-9]+))?")
_CONSTANTS: dict[str, bool | None] = {
    spelling: value
    for name, value in (("true", True), ("false", False), ("null", None))
    for spelling in (name, name.capitalize(), name.upper())
} | {"": None, "~": None}
_MAX_DIGITS = 400
_MAX_EXPONENT = 300


def read_scalar(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar.

    Raises:
        ValueError: it is a number beyond all use, which could cost much time or memory.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _PREFIXED.fullmatch(text):
        return _bounded(text, int(text, 0) if len(text) < _MAX_DIGITS else None)
    found = _NUMBER.fullmatch(text)
    if found is None:
        return text
    exponent = found["exponent"] or "0"
    if len(text) > _MAX_DIGITS or abs(int(exponent)) > _MAX_EXPONENT:
        return _bounded(text, None)
    if _INTEGER.fullmatch(text):
        return _bounded(text, int(text))
    exact = Fraction(text)  # not float: 7.2e6 and 1e22 are exact in decimal
    return _bounded(text, int(exact)) if exact.denominator == 1 else float(exact)


def _bounded(text: str, value: int | None) -> int:
    if value is None or abs(value) > MAX_INTEGER:
        short = text if len(text) <= 30 else f"{text[:27]}..."
        raise ValueError(f"the number `{short}` is out of range")
    return value
