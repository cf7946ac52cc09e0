"""A field of a pydantic model that holds one kind of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler, SerializationInfo
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from reallm_compiler.stages.base import Stage
from reallm_compiler.stages.registry import kinds


@dataclass(frozen=True, slots=True)
class OneKindOf:
    """Marks a field that holds one kind of a stage, chosen by `kind` among those registered now.

    Unlike a union it need not know them when the class is made, so that a package can add kinds.
    """

    stage: str

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        """A validator that looks the kind up, and its own form of plain data."""
        return core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(_plain, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """One of the kinds."""
        choices = {
            name: params.__pydantic_core_schema__ for name, params in kinds(self.stage).items()
        }
        return handler(core_schema.tagged_union_schema(choices, discriminator="kind"))

    def parse(self, value: object) -> Stage:
        """The parameters of `value`."""
        known = kinds(self.stage)
        if isinstance(value, Stage):
            if type(value) in known.values():
                return value
            raise PydanticKnownError("model_attributes_type")
        if not isinstance(value, dict):
            raise PydanticKnownError("model_attributes_type")
        if "kind" not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
        kind = value["kind"]
        if not isinstance(kind, str) or kind not in known:
            expected = ", ".join(f"'{name}'" for name in known)
            raise PydanticKnownError(
                "union_tag_invalid",
                {"discriminator": "'kind'", "tag": str(kind)[:80], "expected_tags": expected},
            )
        return known[kind].model_validate(value)


def _plain(value: Stage, info: SerializationInfo) -> dict[str, Any]:
    return value.model_dump(mode=info.mode)
