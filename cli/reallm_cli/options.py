"""Options that mean the same in every command that has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from reallm_cli.mistakes import CommandLineError
from reallm_compiler.runs.cluster import ClusterOptions

_Command = TypeVar("_Command", bound=Callable[..., object])

decoder_option = click.option(
    "--decoder",
    metavar="PATH",
    help="Trained decoders that the archive uses but does not hold: a file, or a folder.  "
    "[default: the archive's folder]",
)
"""`--decoder PATH`: where decoders are that an archive names by digest."""

cost_option = click.option(
    "--allow-cost",
    is_flag=True,
    help="Let decoding take longer, or more memory, than a file of this length may ask for.",
)
"""`--allow-cost`: let decoding an archive cost what it will."""


def cluster_options(command: _Command) -> _Command:
    """`--ray ADDRESS` and `--shared-storage`, as arguments `ray` and `shared_storage`."""
    shared = click.option(
        "--shared-storage",
        is_flag=True,
        help="With `--ray`: all nodes see the output under its path, and write it in place.",
    )
    address = click.option(
        "--ray",
        metavar="ADDRESS",
        help="Do the work on a Ray cluster: HOST:PORT of its head, `auto` for the one that this "
        "machine is in, `local` to start one here.",
    )
    return address(shared(command))


def cluster_of(ray: str | None, shared_storage: bool) -> ClusterOptions | None:
    """The cluster that the options of `cluster_options` name; None for this machine.

    Raises:
        CommandLineError: the second is given without the first.
    """
    if ray is not None:
        return ClusterOptions(address=ray, shared_storage=shared_storage)
    if shared_storage:
        raise CommandLineError(
            "`--shared-storage` is about a cluster, and none is named", hint="give `--ray ADDRESS`"
        )
    return None
