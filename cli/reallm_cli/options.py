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

cost_option = click.option(
    "--allow-cost",
    is_flag=True,
    help="Let decoding take longer, or more memory, than a file of this length may ask for.",
)
"""`--allow-cost`: let decoding an archive cost what it will."""
