"""Damage of sections, found before their bytes are given out or, on request, afterwards."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from reallm_formats.errors import FormatError
from reallm_formats.sections import SectionEntry, check_spare

_CHUNK: Final = 1 << 24

_DELAY: Final = 0.1
"""Seconds before hashing begins: what is read first has the processor to itself."""

HINT: Final = "transfer or compile the file again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """Something wrong in a file.

    Attributes:
        rule: the broken rule of SPEC.md.
        location: the section and the byte where it starts.
        message: what is wrong there.
    """

    rule: str
    location: str
    message: str

    def __str__(self) -> str:
        return f"{self.location}: {self.message}"

    def error(self, file: str, note: str | None = None) -> FormatError:
        """The damage as an error of a file."""
        location = f"{file}: {self.location}"
        return FormatError(self.rule, self.message, location=location, note=note, hint=HINT)


def damage_of(
    section: SectionEntry, view: memoryview, progress: Callable[[int], None] | None = None
) -> Damage | None:
    """What is wrong with a section's bytes, if anything (S9, S11)."""
    digest = hashlib.sha256()
    for start in range(0, len(view), _CHUNK):
        part = view[start : start + _CHUNK]
        digest.update(part)
        if progress is not None:
            progress(len(part))
    if digest.digest() != section.sha256:
        message = "the section is damaged: its digest differs"
        return Damage(rule="S9", location=section.location, message=message)
    try:
        check_spare(section, view)
    except FormatError as error:
        return Damage(rule=error.rule, location=str(error.location), message=error.message)
    return None


class LaterChecks:
    """Checks of sections in a thread of their own, in the order in which they are added.

    The thread ends when nothing is left to check and is started again when there is. It waits a
    little before it begins, unless somebody waits for it; hashing lets other threads run.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[SectionEntry, memoryview]] = deque()
        self._thread: threading.Thread | None = None
        self._found: list[Damage] = []
        self._awaited = threading.Event()

    @property
    def found(self) -> tuple[Damage, ...]:
        """What was found so far."""
        return tuple(self._found)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to check."""
        with self._lock:
            return self._thread is None

    def add(self, section: SectionEntry, view: memoryview) -> None:
        """Have a section's bytes checked."""
        with self._lock:
            self._waiting.append((section, view))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="reallm-checks", daemon=True
                )
                self._thread.start()

    def finish(self) -> None:
        """Wait until all that was added is checked."""
        self._awaited.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        self._awaited.wait(_DELAY)
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                section, view = self._waiting.popleft()
            damage = damage_of(section, view)
            del view  # so that the file can be unmapped
            if damage is not None:
                self._found.append(damage)
