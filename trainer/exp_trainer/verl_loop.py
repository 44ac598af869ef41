"""`exp`'s agent as an agent loop of verl (0.9.1, verl/experimental/agent_loop/agent_loop.py).

Imported by verl's workers alone: verl is no dependency of this package.
"""

from typing import Any

from verl.experimental.agent_loop.agent_loop import (  # pyright: ignore[reportMissingImports]
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from .errors import TrainerError
from .verl_rollout import Completion, Rollout, ToolServer, roll_out


class ExpReactLoop(AgentLoopBase):
    """Token in, token out: verl's engine samples, the tool server says what comes after each completion.

    The reward is the tool server's, so no reward function of verl is asked. A trajectory that something broke for
    raises, and verl counts its group as failed.
    """

    def __init__(self, *args: Any, tool_server: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._server = ToolServer(tool_server)

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        versions: list[int] = []
        request_id = f"{kwargs.get('uid', '')}_{kwargs.get('session_id', 0)}"

        async def sample(ids: list[int], max_tokens: int, stop_token_ids: list[int]) -> Completion:
            # A copy each turn: verl's servers take entries out of it.
            asked = {**sampling_params, "max_tokens": max_tokens, "stop_token_ids": stop_token_ids}
            output = await self.server_manager.generate(
                request_id=request_id, prompt_ids=list(ids), sampling_params=asked
            )
            if output.log_probs is None or not output.token_ids:
                raise TrainerError("ROLLOUT_FAILED", f"the engine ended with {output.stop_reason} and no logprobs")
            version = output.extra_fields.get("global_steps")
            if version is not None:
                versions.append(version)
            return Completion(list(output.token_ids), list(output.log_probs), str(version))

        rollout = await roll_out(
            self._server,
            sample,
            task_id=kwargs["extra_info"]["task_id"],
            temperature=float(sampling_params["temperature"]),
            top_p=float(sampling_params["top_p"]),
        )
        return as_output(rollout, versions)


def as_output(rollout: Rollout, versions: list[int]) -> AgentLoopOutput:
    """verl's shape: prompt ids, then everything after them with its mask and logprobs."""
    start = rollout.prompt_length
    return AgentLoopOutput(
        prompt_ids=rollout.ids[:start],
        response_ids=rollout.ids[start:],
        response_mask=rollout.mask[start:],
        response_logprobs=rollout.logprobs[start:],
        reward_score=rollout.reward,
        num_turns=2 * len(rollout.turns),
        metrics=AgentLoopMetrics(generate_sequences=rollout.sampling_seconds, tool_calls=rollout.tool_seconds),
        extra_fields={
            "reward_extra_info": rollout.score,
            "turn_scores": [],
            "tool_rewards": [],
            # Weights by which the first and the last turn were sampled.
            "min_global_steps": min(versions, default=None),
            "max_global_steps": max(versions, default=None),
        },
    )
