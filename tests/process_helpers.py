"""RED blocks on one process or on several; light to import, since each process that is started imports it."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing, nn

from ddpm_redistill.pipelines.red_block import REDBlock
from ddpm_redistill.training.batch_norm import share_batch_norms

PROCESSES, BATCH, CHANNELS = 2, 8, 3
Tensors = dict[str, torch.Tensor]


def make_blocks() -> nn.Sequential:
    """Two RED blocks: gradients pass through the statistics of the second to the first."""
    torch.manual_seed(0)
    network = nn.Sequential(REDBlock(CHANNELS), REDBlock(CHANNELS)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)  # norms too: they start at 1 and 0
    return network


def make_batch() -> torch.Tensor:
    """(BATCH, CHANNELS, 5, 5): the images differ in mean and spread, so that those of a part of them are others."""
    x = torch.randn(BATCH, CHANNELS, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    image = torch.arange(BATCH).view(-1, 1, 1, 1)
    return x * (1 + image) + image


def run_blocks(network: nn.Module, x: torch.Tensor) -> Tensors:
    """Two micro-batches, each with its backward -> the last output, gradients and buffers, by name."""
    blocks = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    for part in (x.square(), x):
        y = network(part)
        (y - part).square().mean().backward()
    gradients = {name: value.grad.clone() for name, value in blocks.named_parameters()}
    return {"output": y.detach(), **gradients, **{name: value.clone() for name, value in blocks.named_buffers()}}


def run_on_processes(folder: Path) -> list[Tensors]:
    """The batch shared out -> what each process found."""
    multiprocessing.spawn(_one_process, (str(folder),), nprocs=PROCESSES)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(PROCESSES)]


def _one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=PROCESSES)
    blocks, x = make_blocks(), make_batch().chunk(PROCESSES)[rank]
    share_batch_norms(blocks)
    found = run_blocks(nn.parallel.DistributedDataParallel(blocks), x)
    found["bfloat16"] = blocks.float()[0].gate_norm(x.bfloat16()).detach()
    if rank == 0:  # as it draws samples while the others wait
        found["evaluated"] = blocks.eval()(make_batch().float()).detach()
    save_file(found, f"{folder}/{rank}.safetensors")
    distributed.destroy_process_group()
