"""Calls that must end well or with an error that is foreseen, in bounded time and without escapes.

What is found goes into an `Outcome`.
"""

from __future__ import annotations

import contextlib
import io
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator

from reallm_cli.main import main as command_line
from tests.faults.fuzzing import Outcome

SECONDS = 60.0
BUG = 70
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ERROR = re.compile(r"(\w+\.)*\w*(Error|Exception|Interrupt)")
"""The line of a traceback that says what was raised."""


def run_command(args: list[str]) -> int:
    """The exit code of a command line."""
    return command_line(["--traceback", *args])


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Let a call of `watched` that takes too long fail."""
    before = signal.signal(signal.SIGALRM, _too_long)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def watched(number: int, name: str, call: Callable[[], int], outcome: Outcome) -> int:
    """The exit code of a call.

    Args:
        number: of the file that it is given.
        name: of the call.
        call: gives its exit code.
        outcome: takes the code and what should not have happened.
    """
    output = io.StringIO()
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = call()
    except Exception:  # any error that is not foreseen is what is looked for
        code = BUG
        output.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    outcome.slowest_s = max(outcome.slowest_s, time.perf_counter() - start)
    outcome.counts[f"{name}: {code}"] += 1
    if code == BUG:
        lines = [line for line in output.getvalue().splitlines() if line.strip()]
        cause = [line for line in lines if ERROR.match(line)]
        outcome.findings.append(f"{number} {name}: {(cause or lines[-1:])[-1][:300]}")
    elif CONTROL.search(output.getvalue()):
        outcome.findings.append(f"{number} {name}: a control character is shown")
    return code


def _too_long(*_: object) -> None:
    raise RuntimeError(f"more than {SECONDS:.0f} seconds")
