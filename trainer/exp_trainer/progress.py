"""What `ping` may say while a step computes: where the work is, and whether it moves."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Loading and writing files are single calls into libraries; there CPU seconds stand in for ticks.
COARSE_PHASES = frozenset({"importing", "loading", "saving", "exporting"})


class Progress:
    """A counter that rises only when work was done, so a heartbeat sent on its rise tells the truth."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ticks = 0
        self._phase = "idle"
        self._coarse_since = 0.0

    def tick(self) -> None:
        """One layer, one chunk or one file is done."""
        with self._lock:
            self._ticks += 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name the work of a block; the phase before it returns afterwards."""
        with self._lock:
            before, self._phase, self._coarse_since = self._phase, name, time.process_time()
            self._ticks += 1
        try:
            yield
        finally:
            with self._lock:
                self._settle()
                self._phase = before
                self._ticks += 1

    def read(self) -> tuple[str, int]:
        """The phase and the counter."""
        with self._lock:
            self._settle()
            return self._phase, self._ticks

    def _settle(self) -> None:
        if self._phase not in COARSE_PHASES:
            return
        seconds = int(time.process_time() - self._coarse_since)
        self._ticks += seconds
        self._coarse_since += seconds
