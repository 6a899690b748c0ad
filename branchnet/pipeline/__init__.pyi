from .demo.scene_run import run_demo as run_demo
from .config.config_run import run_from_config as run_from_config
from .full_run import run as run
from .problem import held_out_rows as held_out_rows
from .config.run_config import RunConfig as RunConfig
from .run_result import RunResult as RunResult

__all__ = [
    "RunConfig",
    "RunResult",
    "held_out_rows",
    "run",
    "run_demo",
    "run_from_config",
]
