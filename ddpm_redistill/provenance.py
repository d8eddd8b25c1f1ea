"""What made a result: versions and hardware."""

import platform
import time
from typing import Any


def environment() -> dict[str, Any]:
    """Versions and hardware, for provenance."""
    import accelerate
    import diffusers
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "accelerate": accelerate.__version__,
        "device": device,
        "cpu_threads": torch.get_num_threads(),
    }
