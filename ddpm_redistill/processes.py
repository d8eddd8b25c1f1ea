"""Where the processes of a run compute: each on a GPU of its own, or all on the CPU."""

import logging
import os

from .errors import UserError

log = logging.getLogger("ddpm_redistill")

NUMBERED = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables by which torchrun and the MPIs say how many processes they have started."""


def on_cpu() -> bool:
    """Whether they compute on the CPU: ``ACCELERATE_USE_CPU`` says so, or there is no GPU.

    Warns where ``accelerate launch`` was asked for several processes and has started one: on CPUs it starts no more,
    and says nothing.

    Raises:
        UserError: torchrun has started more processes on this machine than it has GPUs. NCCL has no two on one.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    # of a single process it sets no address at which others would find it
    launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    if launched and not any(name in os.environ for name in NUMBERED):
        log.warning(
            "accelerate launch has started one process, since on CPUs it starts no more, whatever --num_processes:"
            " for two run ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m ddpm_redistill ..."
        )
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available():
        return True
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus:
        raise UserError(
            f"{processes} processes were started on a machine of {gpus} GPU{'s' * (gpus != 1)}: start one a GPU, or set"
            " ACCELERATE_USE_CPU=true to run them on the CPU"
        )
    return False
