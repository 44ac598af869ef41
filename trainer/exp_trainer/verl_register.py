"""Read by verl at its own import (VERL_USE_EXTERNAL_MODULES), before it takes a GPU: is it the verl of the plan?"""

import os
from importlib.metadata import version

from .errors import TrainerError

planned = os.environ.get("EXP_VERL_VERSION")
installed = version("verl")
if planned is not None and installed != planned:
    raise TrainerError(
        "VERL_VERSION", f"the stage was planned for verl {planned}, and this cluster has {installed}; install {planned}"
    )
