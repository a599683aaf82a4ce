"""What ``gambrel simulate`` does beside its tables: progress while it runs, files of requests and of single steps."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from gambrel.core.errors import GambrelError
from gambrel.faces.console import talk
from gambrel.report import humanise as human

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Run
    from gambrel.core.step import CostModel
    from gambrel.core.workload import Workload
    from gambrel.engine import Watch

__all__ = ["watched", "window_of", "write_files"]

WINDOW = (0.0, 60.0)

_EVERY_S = 0.5
_LINE_EVERY_S = 5.0  # where stderr is no terminal
_PATIENCE_S = 10.0  # for the scheduler to stop; one that cannot be stopped takes longer


def window_of(text: str | None) -> tuple[float, float]:
    """``10:20`` as seconds from the first arrival; the first minute where nothing is said.

    Raises:
        GambrelError: another form.
    """
    if text is None:
        return WINDOW
    begin, _, end = text.partition(":")
    try:
        found = float(begin), float(end)
    except ValueError:
        found = 0.0, 0.0
    if not 0 <= found[0] < found[1] < float("inf"):
        raise GambrelError(f"--window must be BEGIN:END in seconds from the first arrival like 10:20, got {text!r}")
    return found


def write_files(
    run: Run, deployment: Deployment, priced: CostModel, workload: Workload, *, requests: Path | None,
    trace: Path | None, window: tuple[float, float],
) -> None:  # fmt: skip
    """Write the rows of requests and the trace of a window, as far as they are wanted, with a word on each."""
    if requests is not None:
        from gambrel.report import write_requests

        write_requests(requests, run)
        talk(f"requests: {len(run):,} rows in {requests}")
    if trace is not None:
        from gambrel.engine import timeline
        from gambrel.report import write_chrome_trace

        number = write_chrome_trace(trace, timeline(deployment, priced, workload, run, *window))
        talk(f"trace: {number:,} events of {window[0]:g} to {window[1]:g} s in {trace}; open it in ui.perfetto.dev")


def watched(simulate: Callable[[Watch], Run]) -> tuple[Run, bool]:
    """Run it with progress on stderr; the run, and whether Ctrl-C ended it early.

    Raises:
        KeyboardInterrupt: it was interrupted before any request had ended, or cannot be stopped halfway.
    """
    from gambrel.engine import Watch

    watch = Watch()
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(simulate(watch))
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            found.append(error)
        finally:
            done.set()

    done = threading.Event()  # Thread.join would take an interrupt for its end
    threading.Thread(target=work, daemon=True).start()  # one that cannot be stopped ends with the program
    interrupted = _talking(done, watch)
    result = found[0]
    if isinstance(result, BaseException):
        raise result
    if interrupted:
        ended = len(result) - result.num_unfinished
        if ended == 0:
            raise KeyboardInterrupt
        talk(f"what follows holds the {ended:,} of {len(result):,} requests that had ended, the others have no times")
    return result, interrupted


def _talking(done: threading.Event, watch: Watch) -> bool:
    """Say how far it is until it is done; whether it was interrupted before."""
    started = said = time.monotonic()
    terminal = sys.stderr.isatty()
    every_s = _EVERY_S if terminal else _LINE_EVERY_S
    try:
        while not done.wait(_EVERY_S):
            now = time.monotonic()
            if now - said >= every_s:
                said = now
                _say(progress_text(*watch.look(), now - started), again=terminal)
    except KeyboardInterrupt:
        watch.stop[0] = True
        if not done.wait(_PATIENCE_S):
            talk("gambrel: this routing cannot be stopped halfway; nothing is kept")
            raise
        return True
    finally:
        if terminal and said > started:
            _say("", again=True)
    return False


def progress_text(ended: int, number: int, clock_s: float, elapsed_s: float) -> str:
    """``42 % of 1,000,000 requests, 3.1 h simulated, 812,000 requests/s, 0.7 s left``."""
    if number == 0:
        return f"simulating for {human.seconds(elapsed_s)}"
    rate = ended / elapsed_s if elapsed_s > 0 else 0.0
    left = human.seconds((number - ended) / rate) if rate > 0 else "unknown time"
    return (
        f"{human.percent(ended / number)} of {number:,} requests, {human.seconds(clock_s)} simulated, "
        f"{human.rate(rate)}, {left} left"
    )


def _say(text: str, *, again: bool) -> None:
    """A line on stderr; on a terminal over the line before."""
    sys.stderr.write(f"\r\x1b[K{text}" if again else f"{text}\n")
    sys.stderr.flush()
