"""Pictures: a matrix beside its reconstruction; and what all pictures need.

The only file that knows matplotlib, which is an extra: it is imported when a picture is drawn.
Pictures are drawn without a screen, and the same numbers give the same bytes (with the same
matplotlib and its settings).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reallm_compiler.distribution import install_command
from reallm_compiler.errors import EvaluationError, OutputError
from reallm_compiler.publish import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS = 1024
"""Most rows or columns of a matrix that are drawn; of larger ones every k-th."""

PERCENTILE = 0.999
"""Share of the magnitudes that the colours reach to, so that an outlier does not hide the rest."""

_DPI = 150
_STARTS = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml"}
"""Kinds of pictures by suffix, and how their files begin."""


def check_matplotlib() -> None:
    """Refuse before any work where no picture can be drawn.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    new_figure(1, 1)


def check_picture(path: str | os.PathLike[str]) -> Path:
    """The path of a picture: `.png` or `.svg`, in a folder that is there, free or a picture.

    Raises:
        OutputError: it cannot be that.
    """
    file = Path(path)
    if file.suffix.lower() not in _STARTS:
        raise OutputError(
            "a picture is a PNG or an SVG file",
            location=str(path),
            hint=f"write `{file.with_suffix('.png')}`",
        )
    if not file.parent.is_dir():
        raise OutputError("there is no such folder", location=str(file.parent))
    if file.is_dir() or (file.exists() and not _is_picture(file)):
        raise OutputError(
            "the existing file is not a picture, so it is not replaced",
            location=str(path),
            hint="choose another name",
        )
    return file


def draw_heatmap(
    path: str | os.PathLike[str], name: str, original: Tensor, decoded: Tensor
) -> float:
    """Draw original, reconstruction and error of a matrix [p, q] (the paper's Figure 1).

    Original and reconstruction share their colours, from blue (negative) to red; the error has
    its own. Each has a colour bar.

    Returns:
        The relative error of the two, ||W - W^|| / ||W||.

    Raises:
        OutputError: the path does not serve (see `check_picture`).
        EvaluationError: matplotlib is not installed, or the shapes differ.
    """
    file = check_picture(path)
    if original.shape != decoded.shape:
        raise EvaluationError(
            f"the model's matrix is {_shape(original)}, the archive's {_shape(decoded)}",
            location=name,
            note="this is not the model that the archive was made of",
        )
    whole, found = original.float().cpu(), decoded.float().cpu()
    error = float((whole - found).norm() / whole.norm()) if whole.any() else 0.0
    figure = new_figure(15, 5)
    axes = figure.subplots(1, 3)
    limit = _limit(whole)
    parts = (
        ("original", whole, limit),
        ("reconstruction", found, limit),
        (f"error, {error:.4f} of the norm", found - whole, _limit(found - whole)),
    )
    for axis, (title, values, reach) in zip(axes, parts, strict=True):
        drawn = axis.imshow(
            thinned(values).numpy(),
            cmap="RdBu_r",
            vmin=-reach,
            vmax=reach,
            interpolation="nearest",
            extent=(-0.5, values.shape[1] - 0.5, values.shape[0] - 0.5, -0.5),  # true indices
        )
        axis.set_title(title)
        axis.set_xlabel("inputs")
        axis.set_ylabel("outputs")
        figure.colorbar(drawn, ax=axis, shrink=0.8)
    step = _step(whole)
    drawn_part = f", every row and column of {step} drawn" if step > 1 else ""
    figure.suptitle(f"{name}  {_shape(whole)}{drawn_part}")
    save_figure(figure, file)
    return error


def thinned(values: Tensor) -> Tensor:
    """Every k-th row and column of [p, q], with the least k that leaves at most `PIXELS`."""
    step = _step(values)
    return values[::step, ::step]


def _limit(values: Tensor) -> float:
    """The magnitude that the colours reach to."""
    magnitudes = thinned(values).abs().flatten()
    file = max(1, round(PERCENTILE * len(magnitudes)))
    return float(torch.kthvalue(magnitudes, file).values) or 1e-12


def _step(values: Tensor) -> int:
    return max(1, -(-max(values.shape) // PIXELS))


def _shape(values: Tensor) -> str:
    return f"{values.shape[0]} x {values.shape[1]}"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no screen.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise EvaluationError(
            "pictures need matplotlib, which is not installed",
            hint=f"install it with `{install_command('plots')}`",
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def label_whole(axis: Axes, label: str) -> None:
    """Let the horizontal axis count in whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(label)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, or as SVG by its suffix.

    Raises:
        OutputError: it cannot be written.
    """
    from matplotlib import rc_context

    kind = path.suffix.lower().removeprefix(".")
    # Without the version of matplotlib, the date, and names drawn by chance inside.
    unwanted = {"png": ("Software",), "svg": ("Creator", "Date")}[kind]
    settings: dict[str, Any] = {
        "dpi": _DPI,
        "format": kind,
        "metadata": dict.fromkeys(unwanted),
    }
    with new_file(path, force=True) as partial, rc_context({"svg.hashsalt": "reallm"}):
        figure.savefig(partial, **settings)


def _is_picture(file: Path) -> bool:
    """Whether a file is a picture of the kind that its suffix names."""
    start = _STARTS[file.suffix.lower()]
    with file.open("rb") as stream:
        return stream.read(len(start)) == start
