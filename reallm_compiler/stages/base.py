"""What the parameters of all kinds share: closed, frozen models; numbers as people write them."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

FloatType = Literal["float32", "float16", "bfloat16"]


class Stage(BaseModel):
    """Base of the parameters of a kind: an unknown key is an error; frozen, strictly typed.

    What a kind needs of the other stages is data on its class, such as `QuantizerStage.ranges`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @property
    def by_rows(self) -> bool:
        """Whether each row of a matrix is treated by itself, and nothing is learned from others."""
        return False

    @property
    def needs_statistics(self) -> bool:
        """Whether it works in the metric of statistics that `reallm calibrate` measured."""
        return False


_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,9}| ?/ ?0*[1-9]\d{0,8})?", re.ASCII)


def as_fraction(value: object) -> object:
    """`1/64` and `2.5` as a Fraction; integers stay integers; all else goes on to validation."""
    if isinstance(value, bool):
        raise ValueError("expected a number, got a boolean")
    if isinstance(value, str):
        # Only short plain forms: Fraction("1e999999999") would fill the memory.
        if not _NUMBER.fullmatch(value):
            short = value if len(value) <= 60 else f"{value[:57]}..."
            raise ValueError(f"expected a number or a fraction such as 1/64, got `{short}`")
        value = Fraction(value.replace(" ", ""))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("expected a finite number")
        value = Fraction(str(value))
    if isinstance(value, Fraction) and value.denominator == 1:
        return int(value)
    return value


def plain_number(value: int | Fraction) -> int | str:
    """A number as YAML and JSON can hold it exactly: a fraction as text."""
    return value if isinstance(value, int) else f"{value.numerator}/{value.denominator}"


Rational = Annotated[
    int | Fraction,
    BeforeValidator(as_fraction, json_schema_input_type=int | float | str),
    PlainSerializer(plain_number, return_type=int | str),
]


def as_whole(value: object) -> object:
    """`7.2e6` as the integer it is; all else goes on to validation."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_tuple(value: object) -> object:
    """A list as a tuple, which can be hashed; all else goes on to validation."""
    return tuple(value) if isinstance(value, list) else value


Whole = Annotated[int, BeforeValidator(as_whole, json_schema_input_type=int | float)]
Extent = Annotated[int, Field(ge=1, le=65536)]
