"""One trajectory of `exp`'s agent, sampled by somebody else's engine.

The agent loop itself runs behind the tool server (environments/deep-research/serve-trajectories.ts): it renders,
runs tools, enforces limits and grades. Here ids are appended and completions sampled, nothing is tokenised.
Knows nothing of verl, so that it can be tested without it.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from .errors import TrainerError

# How long a tool server may be away: a worker that restarts, or another host that takes the stage over.
PATIENCE_S = 600.0
PAUSE_S = 2.0
REQUEST_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Completion:
    """As sampled; the stop token, where there is one, is the last id."""

    token_ids: list[int]
    logprobs: list[float]
    weight_version: str


# (ids so far, max_tokens, stop_token_ids) -> what was sampled after them.
Sample = Callable[[list[int], int, list[int]], Awaitable[Completion]]


@dataclass
class Rollout:
    """A finished trajectory. ids, mask and logprobs have one entry a token; mask is 1 where the policy wrote it."""

    prompt_length: int
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    reward: float = 0.0
    score: dict[str, float] = field(default_factory=dict)
    termination: str = ""
    sampling_seconds: float = 0.0
    tool_seconds: float = 0.0

    def append(self, ids: list[int], logprobs: list[float] | None = None) -> None:
        self.ids += ids
        self.mask += [0 if logprobs is None else 1] * len(ids)
        self.logprobs += [0.0] * len(ids) if logprobs is None else logprobs


class ToolServer:
    """Where trajectories are asked for. Its address stands in a file, and is read again when nobody answers there."""

    def __init__(self, address_file: str, patience_s: float = PATIENCE_S) -> None:
        self._address_file = Path(address_file)
        self._patience_s = patience_s

    async def begin(self, body: Mapping[str, Any]) -> dict[str, Any]:
        reply = await self._post("trajectories", body)
        if reply is None:
            raise TrainerError("TOOL_SERVER", "the tool server does not know the way to begin a trajectory")
        return reply

    async def complete(self, trajectory_id: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """None when the server does not know the trajectory: it is another one than that which began it."""
        return await self._post(f"trajectories/{trajectory_id}", body)

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return await self._request(path, body)
            except (TimeoutError, aiohttp.ClientConnectionError, OSError) as error:
                if time.monotonic() > deadline:
                    raise TrainerError("TOOL_SERVER", f"the tool server does not answer: {error}") from error
                await asyncio.sleep(min(PAUSE_S, self._patience_s))

    async def _request(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        url = json.loads(self._address_file.read_text())["url"]
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{url}/{path}", json=body) as response,
        ):
            answer = await response.json()
            if response.status == 404:
                return None
            if response.status != 200:
                raise TrainerError("TOOL_SERVER", str(answer.get("error")))
            return answer


async def roll_out(server: ToolServer, sample: Sample, *, task_id: str, temperature: float, top_p: float) -> Rollout:
    """Sample one trajectory to its end.

    Raises TrainerError ROLLOUT_FAILED when something other than the policy broke: such a trajectory has no reward,
    and must never get one of 0.
    """
    begin = {
        "trajectory_id": uuid.uuid4().hex,
        "task_id": task_id,
        "sample": 0,
        "temperature": temperature,
        "top_p": top_p,
    }
    reply = await server.begin({**begin, "turns": []})
    rollout = Rollout(prompt_length=len(reply.get("append", [])))
    while "append" in reply:
        rollout.append(reply["append"])
        started = time.monotonic()
        sampled = await sample(rollout.ids, reply["max_tokens"], reply["stop_token_ids"])
        rollout.sampling_seconds += time.monotonic() - started
        rollout.append(sampled.token_ids, sampled.logprobs)
        reply = await _finish_turn(server, begin, rollout, sampled)
    if "end" not in reply:
        failed = reply["failed"]
        raise TrainerError("ROLLOUT_FAILED", f"task {task_id}: {failed['failure_class']}: {failed['message']}")
    end = reply["end"]
    rollout.reward = float(end["reward"]["outcome"])
    rollout.score = {name: float(value) for name, value in end["score"].items()}
    rollout.termination = end["termination"]
    return rollout


async def _finish_turn(
    server: ToolServer, begin: Mapping[str, Any], rollout: Rollout, sampled: Completion
) -> dict[str, Any]:
    """What follows a completion. A server that was replaced is told the finished turns first."""
    started = time.monotonic()
    body = {
        "turn": len(rollout.turns),
        "token_ids": sampled.token_ids,
        "logprobs": sampled.logprobs,
        "weight_version": sampled.weight_version,
    }
    trajectory_id = begin["trajectory_id"]
    reply = await server.complete(trajectory_id, body)
    while reply is None:
        await server.begin({**begin, "turns": rollout.turns})
        reply = await server.complete(trajectory_id, body)
    rollout.tool_seconds += time.monotonic() - started
    if reply.get("record") is not None:
        rollout.turns.append(reply["record"])
    return reply
