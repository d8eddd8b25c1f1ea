"""Where the processes of a run compute: each on a GPU of its own, or all on the CPU."""

import os

from .errors import UserError


def on_cpu() -> bool:
    """Whether they compute on the CPU: ``ACCELERATE_USE_CPU`` says so, or there is no GPU.

    Raises:
        UserError: torchrun has started more processes on this machine than it has GPUs. NCCL has no two on one.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available():
        return True
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus:
        raise UserError(
            f"{processes} processes were started on a machine of {gpus} GPU{'s' * (gpus != 1)}: start one a GPU, or set"
            " ACCELERATE_USE_CPU=true to run them on the CPU"
        )
    return False
