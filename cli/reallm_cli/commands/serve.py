"""`reallm serve`: an archive behind an OpenAI-compatible server."""

from __future__ import annotations

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.libraries import quiet_libraries
from reallm_cli.mistakes import check_archive_path
from reallm_cli.options import cost_option, decoder_option
from reallm_cli.progress import Reporter
from reallm_cli.terminal import Terminal


@click.command(
    "serve",
    cls=ExampleCommand,
    short_help="Serve an archive with OpenAI's interface.",
    examples=[
        ("reallm serve model.reallm", "on port 8000 of this machine"),
        ("reallm serve model.reallm --host 0.0.0.0 --port 80", "for other machines, too"),
    ],
)
@click.argument("archive", metavar="ARCHIVE")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 for one that is free.",
)
@click.option("--name", metavar="NAME", help="The model's name in requests.  [default: the file's]")
@click.option(
    "--mode",
    type=click.Choice(("packed", "dense")),
    default="packed",
    show_default=True,
    help="Compute from the codes, or decode the weights first.",
)
@click.option("--adapter", metavar="FILE", help="An adapter of the archive to serve with.")
@click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu or cuda."
)
@click.option(
    "--kv-cache",
    metavar="NAME|RECIPE",
    help="Keep keys and values quantized: kv-4bit, ..., or `none`.  [default: as the archive's "
    "recipe says]",
)
@click.option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16.  [default: stored]")
@decoder_option
@cost_option
@click.pass_obj
def serve_command(
    terminal: Terminal,
    archive: str,
    host: str,
    port: int,
    name: str | None,
    mode: str,
    adapter: str | None,
    device: str,
    kv_cache: str | None,
    dtype: str | None,
    decoder: str | None,
    allow_cost: bool,
) -> int:
    """Serve an archive with OpenAI's interface, until Ctrl-C.

    Chats (by the model's chat template), completions and responses, streamed or not, several at
    once. The server is that of transformers. Prints its address when it answers.
    """
    check_archive_path(archive)
    if adapter is not None:
        check_archive_path(adapter)
    from reallm_compiler.integrations.serve import serve

    quiet_libraries()
    with Reporter(terminal) as reporter:
        server = serve(
            archive,
            host=host,
            port=port,
            name=name,
            mode="packed" if mode == "packed" else "dense",
            adapter=adapter,
            device=device,
            kv_cache=kv_cache,
            dtype=dtype,
            decoder=decoder,
            allow_cost=allow_cost,
            progress=lambda done, total: reporter.measure("load", "tensors", done, total),
        )
    terminal.log(f"serving `{server.name}`; Ctrl-C ends it")
    terminal.data(terminal.text(server.url))
    terminal.out.file.flush()
    try:
        server.wait()
    finally:
        server.stop()
    return ExitCode.OK
