"""A trainer process behind a Unix socket.

`python -m exp_trainer.server --socket PATH`, or many of it under torchrun: rank 0 serves, all compute. With
`--address FILE` instead it serves on TCP, for a client on another machine that shares the folder of FILE.

Newline-delimited JSON, one object a line: `{id, method, params}` → `{id, result}` or `{id, error: {code, message}}`.
Methods that compute run one at a time, in order of arrival, on one thread; `ping` is answered at once, also
while they run. A client may leave and come back: the work it asked for goes on, and its `step_id` finds the
result. Batches and weights go as paths, never over the socket.
"""

import argparse
import asyncio
import ctypes
import hmac
import json
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

from .errors import TrainerError, classify
from .progress import Progress
from .together import RankLostError, RanksPartedError, Together

if TYPE_CHECKING:
    from .ranks import Ranks
    from .stage import Stage

MAX_LINE_BYTES = 2**20
# How often rank 0 looks whether another rank failed alone.
WATCH_SECONDS = 1.0


class Trainer:
    """The methods of the wire. Torch is imported on the computing thread, so pings are answered meanwhile."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage: Stage | None = None
        self._ranks: Ranks | None = None
        self._together: Together | None = None
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
        """Run one computing method on every rank."""
        return self._joined().call(self._run, method, params)

    def follow(self) -> None:
        """Do what rank 0 asks for, until it is gone."""
        self._joined().follow(self._run)

    def failure_of_one(self) -> RanksPartedError | None:
        """What keeps the present method from ending, when one rank failed and others wait for it."""
        return self._together and self._together.failure_of_one()

    def _run(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """One computing method on this rank; any failure becomes a TrainerError."""
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

    def _joined(self) -> Together:
        """All ranks, met once; importing what every method needs."""
        if self._together is None:
            with self._progress.phase("importing"):
                from . import stage  # noqa: F401
                from .ranks import Ranks

                self._ranks = Ranks.join()
                self._together = Together(self._ranks)
        return self._together

    def warm_up(self) -> None:
        """Be ready before the first method is asked for."""
        self._joined()

    def _open(self, params: Mapping[str, Any]) -> dict[str, Any]:
        from .stage import Stage

        self._stage = None  # free the old policy before loading the new one
        self._stage = Stage(params, self._progress, self._ranks)
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
        self._token = secrets.token_hex(16)

    async def run(self, socket: Path | None, address: Path | None) -> None:
        """Serve until a signal, or until nobody has spoken for a long while and nothing runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._done.set)
        if socket is not None:
            server = await asyncio.start_unix_server(self._serve, path=socket, limit=MAX_LINE_BYTES)
            os.chmod(socket, 0o600)
        else:
            server = await asyncio.start_server(self._serve_known, host="0.0.0.0", port=0, limit=MAX_LINE_BYTES)
            _write_address(address, server.sockets[0].getsockname()[1], self._token)
        loop.run_in_executor(self._compute, self._trainer.warm_up).add_done_callback(self._end_if_failed)
        watch = asyncio.create_task(self._exit_when_idle())
        try:
            await self._done.wait()
        finally:
            watch.cancel()
            server.close()
            for path in filter(None, (socket, address)):
                path.unlink(missing_ok=True)

    def _end_if_failed(self, warm_up: asyncio.Future[None]) -> None:
        """Ranks that did not meet, or a library that is not there: nothing can be asked of this process."""
        if error := warm_up.exception():
            traceback.print_exception(error)
            self._done.set()

    async def _serve_known(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Who could read the address file sends its token first."""
        with suppress(ConnectionError, ValueError):
            if hmac.compare_digest((await reader.readline()).strip(), self._token.encode()):
                return await self._serve(reader, writer)
        writer.close()

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
        request_id, parted = None, False
        try:
            request = _parse(line)
            request_id = request["id"]
            reply = {"id": request_id, "result": await self._result(request["method"], request.get("params") or {})}
        except TrainerError as error:
            reply = {"id": request_id, "error": {"code": error.code, "message": error.message}}
            parted = isinstance(error, RanksPartedError)
        except RankLostError as error:
            _log(f"another rank is gone: {error}")
            self._done.set()
            return
        if not writer.is_closing():
            writer.write(json.dumps(reply, allow_nan=False, default=str).encode() + b"\n")
        if parted:
            _log("the ranks stand at different places: exiting")
            await writer.drain()
            self._done.set()

    async def _result(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        if method == "ping":
            return self._ping()
        self._pending += 1
        running = asyncio.get_running_loop().run_in_executor(self._compute, self._trainer.call, method, params)
        try:
            while not (await asyncio.wait({running}, timeout=WATCH_SECONDS))[0]:
                if failure := self._trainer.failure_of_one():
                    raise failure
            return running.result()
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
    parser = argparse.ArgumentParser(prog="python -m exp_trainer.server", description="Serve a trainer.")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", type=Path, help="Unix socket to serve on")
    place.add_argument("--address", type=Path, help="serve on TCP and write {host, port, token} to this file")
    parser.add_argument("--idle-exit-seconds", type=float, default=900.0)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Without it, cuBLAS refuses to work while deterministic algorithms are asked for.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Threads that wait for each other sleep: spinning, they take the cores from the engine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if "WORLD_SIZE" in os.environ:
        _end_with_parent()
    if os.environ.get("RANK", "0") == "0":
        asyncio.run(_run(arguments.socket, arguments.address, arguments.idle_exit_seconds))
    else:
        _follow()
    # A computing thread cannot be interrupted and must not delay the end. torchrun ends the other ranks
    # when one has failed, and waits for them when it ended well.
    os._exit(1 if many else 0)


def _write_address(path: Path | None, port: int, token: str) -> None:
    """Whole at once, and readable by this user alone."""
    assert path is not None
    part = path.with_name(f".{path.name}.part")
    part.touch(mode=0o600)
    part.write_text(json.dumps({"host": gethostname(), "port": port, "token": token}))
    part.replace(path)


def _follow() -> None:
    try:
        Trainer(Progress()).follow()
    except RankLostError as error:
        _log(f"rank 0 is gone: {error}")


def _end_with_parent() -> None:
    """Have the kernel kill this process when torchrun dies: it is in a session of its own and would live on."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


async def _run(socket: Path | None, address: Path | None, idle_exit_seconds: float) -> None:
    await Server(idle_exit_seconds).run(socket, address)


if __name__ == "__main__":
    main()
