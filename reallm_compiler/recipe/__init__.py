"""The recipe language: from YAML to a decision about each tensor of a model.

    text --document--> located nodes --patch--> one tree --check--> Recipe --resolve--> Decisions

`stages` holds the words of a matrix plan and is the source of everything that is known about them
here: checks, hints, JSON Schema and reference tables.
"""

from reallm_compiler.recipe.load import load_recipe
from reallm_compiler.recipe.model import Recipe
from reallm_compiler.recipe.resolve import Decision, FieldSource, resolve
from reallm_compiler.recipe.rule import Rule
from reallm_compiler.recipe.schema import json_schema
from reallm_compiler.recipe.selection import Candidate
from reallm_compiler.recipe.shipped import list_shipped, read_shipped

__all__ = [
    "Candidate",
    "Decision",
    "FieldSource",
    "Recipe",
    "Rule",
    "json_schema",
    "list_shipped",
    "load_recipe",
    "read_shipped",
    "resolve",
]
