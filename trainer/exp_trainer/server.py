"""A trainer process behind a Unix socket.

`python -m exp_trainer.server --socket PATH`

Newline-delimited JSON, one object a line: `{id, method, params}` → `{id, result}` or `{id, error: {code, message}}`.
Methods that compute run one at a time, in order of arrival, on one thread; `ping` is answered at once, also
while they run. A client may leave and come back: the work it asked for goes on, and its `step_id` finds the
result. Batches and weights go as paths, never over the socket.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import TrainerError, classify
from .progress import Progress

if TYPE_CHECKING:
    from .stage import Stage

MAX_LINE_BYTES = 2**20


class Trainer:
    """The methods of the wire. Torch is imported on the computing thread, so pings are answered meanwhile."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage: Stage | None = None
        self._methods: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "open": self._open,
            "step": lambda params: self._opened().train(params),
            "score": lambda params: self._opened().score(params),
            "beliefs": lambda params: self._opened().beliefs(params),
            "save": lambda params: self._opened().save(params),
            "export": lambda params: self._opened().export(params),
            "close": self._close,
        }

    def call(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Run one computing method; any failure becomes a TrainerError."""
        started = time.monotonic()
        try:
            if method not in self._methods:
                raise TrainerError("UNKNOWN_METHOD", f"no method {method!r}")
            result = self._methods[method](params)
            _log(f"{method} {json.dumps(result, default=str)} in {time.monotonic() - started:.1f} s")
            return result
        except KeyError as error:
            traceback.print_exc()
            raise TrainerError("BAD_REQUEST", f"{method}: no parameter {error}") from error
        except Exception as error:
            traceback.print_exc()
            if self._stage is not None and self._stage.half_changed:
                self._stage = None  # whoever asks next hears NOT_OPEN and opens the last checkpoint again
            raise classify(error) from error

    def where(self) -> dict[str, Any]:
        """What `ping` says of the stage."""
        stage = self._stage
        return {"stage_key": stage.stage_key if stage else None, "step": stage.step if stage else 0}

    def warm_up(self) -> None:
        """Import what every method needs."""
        with self._progress.phase("importing"):
            from . import stage  # noqa: F401

    def _open(self, params: Mapping[str, Any]) -> dict[str, Any]:
        from .stage import Stage

        self._stage = None  # free the old policy before loading the new one
        self._stage = Stage(params, self._progress)
        return self._stage.describe()

    def _close(self, _params: Mapping[str, Any]) -> dict[str, Any]:
        self._stage = None
        return {}

    def _opened(self) -> "Stage":
        if self._stage is None:
            raise TrainerError("NOT_OPEN", "no stage is open")
        return self._stage


class Server:
    """Connections, and the order of the work."""

    def __init__(self, idle_exit_seconds: float) -> None:
        self._progress = Progress()
        self._trainer = Trainer(self._progress)
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._pending = 0
        self._idle_exit_seconds = idle_exit_seconds
        self._last_heard = time.monotonic()
        self._done = asyncio.Event()

    async def run(self, socket: Path) -> None:
        """Serve until a signal, or until nobody has spoken for a long while and nothing runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._done.set)
        server = await asyncio.start_unix_server(self._serve, path=socket, limit=MAX_LINE_BYTES)
        os.chmod(socket, 0o600)
        loop.run_in_executor(self._compute, self._trainer.warm_up)
        watch = asyncio.create_task(self._exit_when_idle())
        try:
            await self._done.wait()
        finally:
            watch.cancel()
            server.close()
            socket.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            while line := await reader.readline():
                task = asyncio.create_task(self._answer(line, writer))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        except asyncio.CancelledError:
            pass  # the server ends; asyncio would print a traceback for each client
        except (ConnectionError, ValueError) as error:  # gone, or a line beyond the limit
            _log(f"connection ended: {error}")
        finally:
            writer.close()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        self._last_heard = time.monotonic()
        request_id = None
        try:
            request = _parse(line)
            request_id = request["id"]
            reply = {"id": request_id, "result": await self._result(request["method"], request.get("params") or {})}
        except TrainerError as error:
            reply = {"id": request_id, "error": {"code": error.code, "message": error.message}}
        if not writer.is_closing():
            writer.write(json.dumps(reply, allow_nan=False, default=str).encode() + b"\n")

    async def _result(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        if method == "ping":
            return self._ping()
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._compute, self._trainer.call, method, params)
        finally:
            self._pending -= 1
            self._last_heard = time.monotonic()

    def _ping(self) -> dict[str, Any]:
        phase, progress = self._progress.read()
        return {
            "pid": os.getpid(),
            **self._trainer.where(),
            "busy": self._pending > 0,
            "phase": phase,
            "progress": progress,
        }

    async def _exit_when_idle(self) -> None:
        """An orphan must not keep the memory: its worker would have spoken."""
        while True:
            await asyncio.sleep(min(5.0, self._idle_exit_seconds / 2))
            if self._pending == 0 and time.monotonic() - self._last_heard > self._idle_exit_seconds:
                _log("no message for a long time: exiting")
                self._done.set()


def _log(line: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), os.getpid(), line, file=sys.stderr, flush=True)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError as error:
        raise TrainerError("BAD_REQUEST", f"not JSON: {error}") from error
    if not isinstance(request, dict) or "id" not in request or not isinstance(request.get("method"), str):
        raise TrainerError("BAD_REQUEST", "a request is {id, method, params}")
    return request


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m exp_trainer.server", description="Serve a trainer on a Unix socket."
    )
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--idle-exit-seconds", type=float, default=900.0)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Threads that wait for each other sleep: spinning, they take the cores from the engine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    asyncio.run(_run(arguments.socket, arguments.idle_exit_seconds))
    os._exit(0)  # a computing thread cannot be interrupted and must not delay the end


async def _run(socket: Path, idle_exit_seconds: float) -> None:
    await Server(idle_exit_seconds).run(socket)


if __name__ == "__main__":
    main()
