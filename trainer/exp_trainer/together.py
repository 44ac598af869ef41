"""One request on every rank: all do it, and its answer says how it went on each.

A rank that fails alone leaves the others in a collective that it will never enter. It says so in torchrun's store,
which does not wait for anybody; rank 0 looks there, answers with the failure and ends, and torchrun ends the rest.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .errors import TrainerError, classify

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from .ranks import Ranks

# How long the others may take to fail in the same way, or to finish, after one rank has failed.
GRACE_SECONDS = 10.0

Run = Callable[[str, Mapping[str, Any]], dict[str, Any]]


class RanksPartedError(TrainerError):
    """The ranks no longer stand at the same place: the process group must end."""


class RankLostError(Exception):
    """A rank is gone. There is nothing to answer: the group is ending."""


class Together:
    """Requests of rank 0, done by all ranks in the same order."""

    def __init__(self, ranks: "Ranks") -> None:
        self._ranks = ranks
        self._count = 0
        self._seen: tuple[int, float] | None = None
        # A connection of its own: looked at from another thread while a collective is set up over the first.
        self._store = _connect() if ranks.size > 1 else None

    def call(self, run: Run, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Rank 0: have everyone do it; the first failure of any rank, or rank 0's result."""
        if self._ranks.size == 1:
            return run(method, params)
        _unless_lost(lambda: self._ranks.from_first((method, dict(params))))
        result, errors = self._do(run, method, params)
        failed = [rank for rank, error in enumerate(errors) if error is not None]
        if not failed:
            return result
        code, message = errors[failed[0]]
        if len(failed) == len(errors):
            raise TrainerError(code, message)
        raise RanksPartedError(code, f"rank {failed[0]} of {len(errors)}: {message}")

    def follow(self, run: Run) -> None:
        """Every other rank: do what rank 0 asks for, until it is gone."""
        while True:
            method, params = _unless_lost(lambda: self._ranks.from_first(("", {})))
            self._do(run, method, params)

    def failure_of_one(self) -> RanksPartedError | None:
        """The failure that keeps the present request from ending, if there is one; for another thread of rank 0."""
        if self._store is None or not self._store.check([self._key()]):
            return None
        if self._seen is None or self._seen[0] != self._count:
            self._seen = (self._count, time.monotonic())
        if time.monotonic() - self._seen[1] < GRACE_SECONDS:
            return None
        rank, code, message = json.loads(self._store.get(self._key()))
        return RanksPartedError(code, f"rank {rank} of {self._ranks.size}: {message}")

    def _do(self, run: Run, method: str, params: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        self._count += 1
        result, error = {}, None
        try:
            result = run(method, params)
        except Exception as caught:
            failure = classify(caught)
            error = (failure.code, failure.message)
            assert self._store is not None
            self._store.set(self._key(), json.dumps([self._ranks.rank, *error]))
        return result, _unless_lost(lambda: self._ranks.of_all(error))

    def _key(self) -> str:
        return f"exp-trainer/failed/{self._count}"


def _connect() -> "Store":
    import torch.distributed as dist

    return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage] (documented as public)
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
    )


def _unless_lost(collective: Callable[[], Any]) -> Any:
    try:
        return collective()
    except RuntimeError as error:  # what gloo raises when a peer's connection ends
        raise RankLostError(str(error)) from error
