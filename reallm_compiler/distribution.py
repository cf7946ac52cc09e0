"""The distribution: its name on the package index, its version, and how an extra is installed.

The index has another project under the name `reallm`. So no hint writes a name of its own, and
the version is not looked up under a name that another project may have installed.
"""

from __future__ import annotations

NAME = "reallm-compiler"
"""What pip installs; the command is `reallm`."""

VERSION = "0.1.0"
"""The version of this code; the build takes it from here."""


def install_command(extra: str) -> str:
    """The command that installs what `extra` of pyproject.toml needs."""
    return f"pip install '{NAME}[{extra}]'"
