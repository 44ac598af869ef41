"""Compose verl's own trainer configuration with overrides, as `verl.trainer.main_ppo` would, and validate it.

Reads a JSON list of lists of overrides from standard input; writes for each list what its overrides became, as JSON
{key: value}, or {"error": text}: an override that names no key of this verl is an error of Hydra's, and so is a value
of the wrong type.
"""

import json
import sys

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf


def main() -> None:
    with initialize_config_module("verl.trainer.config", version_base=None):
        json.dump([composed(overrides) for overrides in json.load(sys.stdin)], sys.stdout)


def composed(overrides: list[str]) -> dict[str, object]:
    try:
        config = compose("ppo_trainer", overrides=overrides)
        validate(config)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    keys = [override.split("=", 1)[0] for override in overrides]
    return {key: as_plain(OmegaConf.select(config, key, throw_on_missing=True)) for key in keys}


def as_plain(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def validate(config: object) -> None:
    """The checks of `main_ppo` before it asks for GPUs: its dataclasses refuse what Hydra lets pass."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass

    assert not need_critic(config)
    need_reference_policy(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    actor.validate(gpus, config.data.train_batch_size, config.actor_rollout_ref.model)
    for section in (config.actor_rollout_ref.rollout, config.algorithm):
        omega_conf_to_dataclass(section)


if __name__ == "__main__":
    main()
