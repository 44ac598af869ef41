"""Sample trajectories with `ExpReactLoop` inside the real verl, against a tool server, with a scripted engine.

Standard input: {"tool_server": file, "policy": folder, "actions": [[ids of a completion, …], …], "task_id": id}.
Writes what verl is handed, as JSON. No GPU: the engine says the actions, each id with the logprob -0.5 - position.
"""

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

from exp_trainer.verl_loop import ExpReactLoop
from hydra import compose, initialize_config_module
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput


class ScriptedEngine:
    def __init__(self, actions: list[list[int]]) -> None:
        self._actions = iter(actions)
        self.asked: list[dict[str, Any]] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        self.asked.append({"ids": prompt_ids, **sampling_params})
        sampling_params.pop("max_tokens")  # as verl's servers do
        ids = next(self._actions)
        return TokenOutput(
            token_ids=ids,
            log_probs=[-0.5 - at for at in range(len(ids))],
            stop_reason="completed",
            extra_fields={"global_steps": 3},
        )


def main() -> None:
    asked = json.load(sys.stdin)
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["actor_rollout_ref.rollout.name=vllm"])
    engine = ScriptedEngine(asked["actions"])

    async def run() -> Any:
        loop = ExpReactLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=engine,
            tokenizer=AutoTokenizer.from_pretrained(asked["policy"]),
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
            tools=SimpleNamespace(tools=[]),
            tool_server=asked["tool_server"],
        )
        sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
        return await loop.run(sampling, uid="u", session_id=0, extra_info={"task_id": asked["task_id"]}, raw_prompt=[])

    output = asyncio.run(run())
    tensors = {
        name: value.tolist()
        for name, value in output.as_dict().items()
        if name in ("prompts", "responses", "response_mask", "rollout_log_probs", "rm_scores")
    }
    json.dump({**tensors, "extra_fields": output.extra_fields, "asked": engine.asked}, sys.stdout)


if __name__ == "__main__":
    main()
