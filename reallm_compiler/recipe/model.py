"""What may stand in a recipe (the form), and what a checked recipe is.

The forms are pydantic models: they fix keys and types, and the JSON Schema is made from them.
A `Recipe` is what remains when everything was found right; its nodes still know their lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from reallm_compiler.recipe.allocation import AllocateForm, Allocation
from reallm_compiler.recipe.nodes import MAX_INTEGER, Location, MapNode
from reallm_compiler.recipe.rule import Form, Rule, RuleForm
from reallm_compiler.recipe.tuning import FinetuneOptions
from reallm_compiler.stages import BlockFit, KvCache, MatrixPlan, Prepare, PrepareStage


class ShapesForm(Form):
    """A model of which only the shapes are known."""

    shapes: dict[str, list[int]] = Field(
        min_length=1, description="Extents of each tensor, by its name."
    )
    dtype: str | None = Field(default=None, description="Their type; float16 by default.")


class RecipeForm(Form):
    """A recipe file."""

    reallm: Literal[1] = Field(description="Version of the recipe language.")
    model: str | ShapesForm | None = Field(
        default=None,
        description="Checkpoint folder or hub id; may be given on the command line instead. For a "
        "budget also a bare config.json, or `{shapes: {NAME: [p, q]}}`.",
    )
    output: str | None = Field(
        default=None, description="File to write; may be given on the command line instead."
    )
    seed: int = Field(default=0, ge=0, le=MAX_INTEGER, description="Seed of all random choices.")
    extends: str | None = Field(
        default=None,
        min_length=1,
        description="A shipped recipe, or a recipe file relative to this one; what follows is put "
        "over it, and its rules come first.",
    )
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="The plan of every matrix that no rule changes."
    )
    rules: list[RuleForm] = Field(
        default_factory=list, description="Ordered patches: a later rule wins, field by field."
    )
    statistics: Literal["none", "required"] = Field(
        default="none",
        description="Whether a compile needs a file of statistics that `reallm calibrate` measured "
        "on the model, as some kinds do.",
    )
    prepare: Prepare = Field(
        default=(),
        description="What is done to the whole model before any matrix is coded, in order; the "
        "model computes what it did before.",
    )
    fit: BlockFit | None = Field(
        default=None,
        description="What may learn while blocks of the model are coded, by a text (`compile "
        "--text`).",
    )
    allocate: AllocateForm | None = Field(
        default=None,
        description="What `reallm allocate` chooses from, for each matrix, and how much may be "
        "stored. It writes the choice as a recipe; this one cannot be compiled.",
    )
    kv_cache: dict[str, Any] | None = Field(
        default=None,
        description="How the model keeps keys and values while it generates; it changes no matrix.",
    )
    finetune: FinetuneOptions = Field(
        default_factory=FinetuneOptions,
        description="Settings of `reallm finetune` on the archive; they change no matrix.",
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe, everything it extends included.

    Attributes:
        name: a shipped recipe's name, a file's stem, or `recipe`.
        model: the recipe's `model`, as written; None if it has none.
        output: the file to write, as written; None if the recipe has none.
        seed: seed of all random choices.
        plan: the plan of a matrix that no rule changes.
        tree: the same with the location of each field.
        rules: the rules of the extended recipes first, then its own.
        statistics: `required` if a compile needs measured statistics, else `none`.
        prepare: what is done to the whole model before any matrix is coded, in order.
        fit: what learns while matrices are coded; None if nothing does.
        fit_at: where that is written.
        allocate: what a plan is chosen from for each matrix; None for a recipe that says it all.
        kv_cache: how keys and values are kept; None for as they are.
        finetune: what the recipe sets of tuning, as plain data; empty if it sets nothing.
        document: plain data with all of this, without model and output; it holds every
            field of the defaults, so that an archive does not depend on later defaults.
        files: the recipe files that were read, the extended ones first.
    """

    name: str
    model: str | Mapping[str, Any] | None
    output: str | None
    seed: int
    plan: MatrixPlan
    tree: MapNode
    rules: tuple[Rule, ...]
    statistics: Literal["none", "required"]
    prepare: tuple[PrepareStage, ...] = ()
    fit: BlockFit | None = None
    fit_at: Location | None = None
    allocate: Allocation | None = None
    kv_cache: KvCache | None = None
    finetune: Mapping[str, Any]
    document: Mapping[str, Any]
    files: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}, {len(self.rules)} rules)"

    @property
    def defaults(self) -> dict[str, Any]:
        """The plan of a matrix that no rule changes, as plain data."""
        return self.plan.plain()
