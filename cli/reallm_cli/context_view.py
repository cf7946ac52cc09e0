"""Keys and values of a context: `reallm budget --context N`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm_cli.tables import show_facts
from reallm_cli.terminal import Terminal
from reallm_compiler.errors import SourceError
from reallm_compiler.numbers import counted, grouped, share_text
from reallm_compiler.planning.kv_cache import CacheBudget


def context_budget(
    recipe: Mapping[str, Any], config: Mapping[str, Any] | None, label: str, context: int
) -> CacheBudget:
    """What a model keeps of `context` tokens of one sequence by a recipe.

    Args:
        recipe: the recipe as plain data.
        config: the model's; None where it has none.
        label: the model's name in messages.
        context: tokens.

    Raises:
        SourceError: the model has no config, or keeps something else than keys and values.
        CodecError: its heads cannot be coded so.
    """
    from reallm_compiler.checkpoint.attention import cached_layers
    from reallm_compiler.checkpoint.scales import config_dtype
    from reallm_compiler.planning.kv_cache import cache_budget
    from reallm_compiler.recipe import load_recipe
    from reallm_formats.dtypes import BITS

    if config is None:
        raise SourceError(
            "these are matrices without a config: what a model keeps of tokens is not known",
            location=label,
            hint="leave out `--context`",
        )
    number = BITS[config_dtype(config) or "f16"] // 8
    layers = cached_layers(config, label)
    return cache_budget(load_recipe(recipe).kv_cache, layers, context, number)


def show_context(terminal: Terminal, found: CacheBudget) -> None:
    """The parts, each in bytes, and what one more token costs."""
    facts = [(name, grouped(size)) for name, size in found.coded.items()]
    facts.append(("kept as they are", grouped(found.kept)))
    if found.tables:
        facts.append(("codebooks", grouped(found.tables)))
    facts.append(("all", f"{grouped(found.total)} bytes"))
    facts.append(
        ("without", f"{grouped(found.plain)} bytes: {share_text(found.total, found.plain)} of it")
    )
    token = found.token
    exact = grouped(int(token)) if token.denominator == 1 else f"{float(token):,.4f}"
    facts.append(("a token", f"{exact} bytes, {grouped(found.plain_token)} as it is"))
    terminal.data()
    layers = counted(found.layers, "layer")
    title = f"keys and values of {counted(found.context, 'token')} in {layers}"
    show_facts(terminal, facts, title=title)
