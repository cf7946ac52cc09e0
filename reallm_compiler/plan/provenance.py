"""Where an archive's bytes come from, as fixed-width text."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def software_version(package: str) -> str:
    """Installed version of `package`, or `unknown` for an uninstalled checkout."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
