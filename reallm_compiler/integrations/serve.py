"""An OpenAI-compatible server over an archive: transformers' own `serve`, with a packed model.

The server, its endpoints and its way to handle requests side by side are those of transformers
(`transformers serve`); what is different is where its one model comes from.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from reallm_compiler.distribution import install_command
from reallm_compiler.errors import ExportError
from reallm_compiler.runtime.mapped import Mode
from reallm_compiler.runtime.models import load


class Server:
    """A server that is running; `stop` ends it.

    Attributes:
        url: where it answers, with the path `/v1` of the endpoints.
        name: of its model, as requests give it.
    """

    def __init__(self, serve: Any, url: str, name: str) -> None:  # noqa: ANN401
        self._serve = serve
        self.url = url
        self.name = name

    def wait(self) -> None:
        """Until the server ends."""
        self._serve._thread.join()

    def stop(self) -> None:
        """End the server and let go of the model."""
        self._serve.kill_server()
        self._serve._thread.join()


def serve(
    path: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    mode: Mode = "packed",
    device: str = "auto",
    dtype: str | None = None,
    **options: Any,  # noqa: ANN401
) -> Server:
    """Serve an archive, in the background of this process.

    Endpoints: `/v1/chat/completions` (by the chat template of the archive's tokenizer),
    `/v1/completions`, `/v1/responses`, `/v1/models`, `/health`; with and without streaming.

    Args:
        path: the archive.
        host: the address to listen on; other machines see only what listens on `0.0.0.0`.
        port: the port; 0 for one that is free.
        name: of the model in requests; the file's name without its ending when None.
        mode: as for `load`.
        device: as for `load`.
        dtype: as for `load`.
        **options: the others of `load`: `adapter`, `decoder`, `allow_cost`, `verify`, `kv_cache`,
            `progress`.

    Raises:
        ExportError: the libraries of a server are not installed, the port is taken, the model does
            not generate text, or it has no tokenizer.
        ReallmError: whatever `load` raises.
    """
    made = _library()
    port = _free(host, port)
    name = name or Path(path).stem
    model, tokenizer = load(path, mode=mode, device=device, dtype=dtype, **options)
    _check_serves(model, tokenizer, os.fspath(path))
    running = _start(made, model, tokenizer, name=name, host=host, port=port)
    shown = f"[{host}]" if ":" in host else host
    return Server(running, f"http://{shown}:{port}/v1", name)


def _start(
    made: Any,  # noqa: ANN401
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    **options: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """transformers' server with a manager of models that has this one."""
    from transformers.cli.serving import model_manager

    name = options.pop("name")

    class Archive(model_manager.ModelManager):
        """Gives out the one model that is loaded already."""

        def _load_processor(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return tokenizer

        def _load_model(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return model

        def get_gen_models(self) -> list[dict[str, Any]]:  # type: ignore[override]
            """The one model; not those of the Hub's cache, which are not served."""
            return [{"id": name, "object": "model", "created": 0, "owned_by": "reallm"}]

    class InBackground(made):  # type: ignore[misc]
        """Runs in a thread that closes its event loop at the end."""

        def start_server(self) -> None:
            self._thread = threading.Thread(target=self.server.run, name="server")
            self._thread.start()

    from uvicorn.config import LOGGING_CONFIG

    access = LOGGING_CONFIG["handlers"]["access"] | {"stream": "ext://sys.stderr"}
    with (
        mock.patch.object(model_manager, "ModelManager", Archive),
        mock.patch.dict(LOGGING_CONFIG["handlers"], access=access),  # stdout carries data
    ):
        running = InBackground(force_model=name, non_blocking=True, device="cpu", **options)
    while not running.server.started:
        running._thread.join(timeout=0.02)
        if not running._thread.is_alive():
            raise ExportError("the server ended when it began", location=name)
    return running


def _library() -> Callable[..., Any]:
    try:
        from transformers.cli.serve import Serve
        from transformers.utils.import_utils import is_serve_available
    except ImportError as error:
        raise ExportError(
            "this version of transformers has no server", hint=install_command("serve")
        ) from error
    if not is_serve_available():
        raise ExportError(
            "the libraries of a server are not installed", hint=install_command("serve")
        )
    made: Callable[..., Any] = Serve
    return made


def _free(host: str, port: int) -> int:
    """The port, or a free one for 0, before a model is loaded for it.

    Raises:
        ExportError: it cannot be listened on.
    """
    try:
        with socket.create_server((host, port), family=_family(host)) as found:
            number: int = found.getsockname()[1]
            return number
    except OSError as error:
        raise ExportError(
            f"cannot listen there: {error.strerror or error}",
            location=f"{host}:{port}",
            hint="choose another `--port`; 0 takes one that is free",
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _check_serves(model: Any, tokenizer: Any, label: str) -> None:  # noqa: ANN401
    """Refuse a model that answers no request.

    Raises:
        ExportError: with the reason.
    """
    why = None
    if tokenizer is None:
        why = "it has no tokenizer"
    elif not model.can_generate():
        why = f"{type(model).__name__} generates no text"
    if why is not None:
        raise ExportError(f"this model cannot be served: {why}", location=label)
