"""Options that mean the same in every command that has them."""

from __future__ import annotations

import click

decoder_option = click.option(
    "--decoder",
    metavar="PATH",
    help="Trained decoders that the archive uses but does not hold: a file, or a folder.  "
    "[default: the archive's folder]",
)
"""`--decoder PATH`: where decoders are that an archive names by digest."""
