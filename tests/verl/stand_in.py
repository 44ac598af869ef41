"""In the place of `verl.trainer.main_ppo`, which needs GPUs: the same settings, files and environment; no training.

Does what exp relies on (verl 0.9.1, verl/trainer/ppo/v1/trainer_base.py): reads the overrides with Hydra's own parser,
goes on from latest_checkpointed_iteration.txt, logs a JSON line a step, saves every save_freq steps and at the end.
`FAIL_AT` in a file of that name beside the checkpoints makes it die once at that step, after logging it.
"""

import json
import os
import sys
import time
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

parsed = OverridesParser.create().parse_overrides(sys.argv[1:])
settings = {override.key_or_group: override.value() for override in parsed}


def text(key: str) -> str:
    value = settings[key]
    return getattr(value, "text", value)


checkpoints = Path(text("trainer.default_local_dir"))
latest = checkpoints / "latest_checkpointed_iteration.txt"
until = settings["trainer.total_training_steps"]
every = settings["trainer.save_freq"]
fail_at = checkpoints.parent / "FAIL_AT"
seconds = float((checkpoints.parent / "SECONDS").read_text()) if (checkpoints.parent / "SECONDS").exists() else 0.0


def save(step: int) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder = checkpoints / f"global_step_{step}" / "actor" / "huggingface"
    folder.mkdir(parents=True)
    save_file({"model.a": np.full((2, 3), float(step))}, folder / "model-00001-of-00002.safetensors")
    save_file({"model.b": np.full(4, float(step))}, folder / "model-00002-of-00002.safetensors")
    latest.write_text(str(step))


def main() -> None:
    import exp_trainer.verl_rollout  # noqa: F401  our half is on the path of the job

    start = int(latest.read_text()) if latest.exists() else 0
    assert Path(text("data.train_files")).exists() and Path(text("actor_rollout_ref.model.path")).is_dir()
    print(f"from step {start} to {until}, pid {os.getpid()}", flush=True)
    with open(os.environ["VERL_FILE_LOGGER_PATH"], "wb", buffering=0) as log:
        for step in range(start + 1, until + 1):
            time.sleep(seconds)
            data = {"actor/pg_loss": 1 / step, "critic/score/mean": start + step / 100, "val-core/x/mean@4": 1.5}
            log.write(json.dumps({"step": step, "data": data}).encode() + b"\n")
            if fail_at.exists() and step == int(fail_at.read_text()):
                fail_at.unlink()
                sys.exit(f"died at step {step}, as it was told to")
            if step % every == 0 or step == until:
                save(step)


main()
