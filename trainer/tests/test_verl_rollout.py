"""A trajectory sampled for a tool server, without verl: what happens when the server goes away, and when it fails."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from exp_trainer.errors import TrainerError
from exp_trainer.verl_rollout import Completion, Rollout, ToolServer, roll_out

STOP = 2
ASK = {"max_tokens": 8, "stop_token_ids": [STOP]}
END = {"reward": {"outcome": 1.0}, "score": {"exact_match": 1, "format_valid": True}, "termination": "answer"}

Answer = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]


@asynccontextmanager
async def serving(answer: Answer):
    """A server that answers each POST by path and body; its address."""

    async def handle(request: web.Request) -> web.Response:
        status, body = answer(request.path.removeprefix("/"), await request.json())
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def sample(ids: list[int], max_tokens: int, stop_token_ids: list[int]) -> Completion:
    assert (max_tokens, stop_token_ids) == (8, [STOP])
    return Completion([len(ids), STOP], [-0.25, -0.5], "7")


def roll(address_file: Path) -> Awaitable[Rollout]:
    return roll_out(ToolServer(str(address_file), patience_s=20.0), sample, task_id="t", temperature=1.0, top_p=1.0)


def test_ids_mask_and_logprobs_are_one_growing_list(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        bodies.append(body)
        if path == "trajectories":
            return 200, {"record": None, "append": [10, 11, 12], **ASK}
        if body["turn"] == 0:
            return 200, {"record": {"turn": 0}, "append": [20, 21], **ASK}
        return 200, {"record": {"turn": 1}, "end": END}

    async def run() -> Rollout:
        async with serving(answer) as url:
            (tmp_path / "address").write_text(json.dumps({"url": url}))
            return await roll(tmp_path / "address")

    rollout = asyncio.run(run())
    assert rollout.prompt_length == 3
    assert rollout.ids == [10, 11, 12, 3, STOP, 20, 21, 7, STOP]
    assert rollout.mask == [0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert rollout.logprobs == [0, 0, 0, -0.25, -0.5, 0, 0, -0.25, -0.5]
    assert (rollout.reward, rollout.score) == (1.0, {"exact_match": 1.0, "format_valid": 1.0})
    assert bodies[0]["turns"] == []
    assert (bodies[2]["token_ids"], bodies[2]["weight_version"]) == ([7, STOP], "7")


def test_a_server_that_took_the_place_of_another_is_told_the_turns(tmp_path: Path) -> None:
    address = tmp_path / "address"
    begun: list[list[Any]] = []

    def new(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path == "trajectories":
            begun.append(body["turns"])
            return 200, {"record": None, "append": [10, 11, 12, 3, STOP, 20], **ASK}
        if not begun:
            return 404, {"error": "there is no such trajectory"}
        return 200, {"record": {"turn": 1}, "end": END}

    async def run() -> Rollout:
        async with serving(new) as new_url:
            gone: list[Any] = []

            def old(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
                if path == "trajectories":
                    return 200, {"record": None, "append": [10, 11, 12], **ASK}
                if gone:
                    return 500, {"error": "never asked"}
                gone.append(body)
                address.write_text(json.dumps({"url": new_url}))
                return 200, {"record": {"turn": 0}, "append": [20], **ASK}

            async with serving(old) as old_url:
                address.write_text(json.dumps({"url": old_url}))
                return await roll(address)

    rollout = asyncio.run(run())
    assert begun == [[{"turn": 0}]]
    assert rollout.ids == [
        10,
        11,
        12,
        3,
        STOP,
        20,
        6,
        STOP,
    ]  # what the new one repeats is not


def test_a_server_that_is_away_is_waited_for_where_its_file_says(tmp_path: Path) -> None:
    address = tmp_path / "address"
    address.write_text(json.dumps({"url": "http://127.0.0.1:9"}))

    async def run() -> Rollout:
        async with serving(lambda path, body: (200, {"record": None, "end": END})) as url:

            async def come_back() -> None:
                await asyncio.sleep(0.2)
                address.write_text(json.dumps({"url": url}))

            rollout, _ = await asyncio.gather(roll(address), come_back())
            return rollout

    assert asyncio.run(run()).reward == 1.0


def test_what_broke_is_an_error_and_no_reward(tmp_path: Path) -> None:
    failed = {"record": None, "failed": {"failure_class": "tool", "message": "no index"}}

    async def run() -> None:
        async with serving(lambda path, body: (200, failed)) as url:
            (tmp_path / "address").write_text(json.dumps({"url": url}))
            await roll(tmp_path / "address")

    with pytest.raises(TrainerError, match="task t: tool: no index") as raised:
        asyncio.run(run())
    assert raised.value.code == "ROLLOUT_FAILED"
