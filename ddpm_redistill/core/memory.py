"""Peak memory of one forward pass, by named definitions, with no compute.

Every figure is in bytes and exact (``live_tensors.py`` says what it sees and what not), but ``cuda_peak``, which is
an allocator's. Imports torch only.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .live_tensors import LiveTensor, LiveTensorTracker, tensors_in
from .meta import without_data
from .paper_memory import ResidualBlockRecorder
from .timeline import TimelinePoint, memory_timeline


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""A CPU's attention kernel, which the counter of some versions of torch (2.14) does not know."""


@dataclass(frozen=True, kw_only=True)
class MemoryProfile:
    """Memory of one forward pass under no_grad in eval mode, each definition by its name; bytes throughout.

    paper_peak: ReDistill's theoretical peak (see paper_memory.py); None without a residual block.
    paper_peak_with_skips: the same with the long skip connections that are alive meanwhile.
    red_paper_peak: the largest three maps of a RED block, 0 without one.
    tensor_peak: most bytes of tensors alive at once that the forward itself made.
    tensor_peak_with_input: tensor_peak plus all input tensors, which the caller holds throughout
        (number of elements x element size, each tensor once).
    weights: bytes of parameters and buffers; parameters: number of parameter elements.
    macs: multiply-accumulates of convolutions, matrix products and attention (half of torch's flop count).
    cuda_peak: the most that torch's CUDA allocator held above what it held before the forward; None on fake tensors
        and on other devices. Convolution and matrix workspaces count, also those that a library keeps from its first
        call on: run the module once before for a figure without those.
    peak_operation, peak_module, live_at_peak: where tensor_peak occurs, and what lives there, largest first.
    timeline: every operation in its order (see timeline.py); not in to_dict().
    """

    paper_peak: int | None
    red_paper_peak: int
    paper_peak_with_skips: int | None
    tensor_peak: int
    tensor_peak_with_input: int
    weights: int
    parameters: int
    macs: int
    peak_operation: str
    peak_module: str
    live_at_peak: tuple[LiveTensor, ...]
    cuda_peak: int | None = None
    timeline: tuple[TimelinePoint, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the timeline as plain dictionaries, lists and numbers, ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "timeline"}
        return {**values, "live_at_peak": [{**asdict(t), "shape": list(t.shape)} for t in self.live_at_peak]}


def profile_memory(module: nn.Module, *inputs: Any, fake: bool = True, **kwargs: Any) -> MemoryProfile:
    """Measure one forward pass `module(*inputs, **kwargs)` by every definition of `MemoryProfile`, in bytes.

    Args:
        module: any module; its training flags, parameters and hooks are afterwards what they were.
        inputs, kwargs: arguments of the forward, of any shapes, e.g. sample (B, C, H, W) and timestep () or
            int. With `fake`, tensors may be meta, fake or real: only shape, stride and dtype are read.
        fake: True runs on fake CPU tensors: nothing is computed, no memory is taken, at any resolution, and
            the module may be on the meta device. False runs `module` for real, where it is; on CUDA that resets
            the device's peak statistics.

    Raises:
        ValueError: `fake=False` with a tensor or a module that holds no data (meta or fake).
        Whatever the forward raises; with `fake`, torch's own error if it reads a value out of a tensor.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    given = tensors_in((inputs, kwargs))
    if not fake and any(t.is_meta or isinstance(t, FakeTensor) for t in [*given, *state.values()]):
        raise ValueError("profile_memory(fake=False) computes for real: give real tensors, or use fake=True")

    on_cuda = next((t.device for t in [*state.values(), *given] if t.is_cuda and not fake), None)
    cuda_peak = None
    training = {m: m.training for m in module.modules()}
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
    try:
        module.eval()
        with torch.no_grad(), fake_mode:
            if fake:
                on_cpu = partial(without_data, device="cpu")
                inputs, kwargs = tree_map_only(Tensor, on_cpu, (inputs, kwargs))
                state = {name: on_cpu(t) for name, t in state.items()}
            external = [*state.values(), *tensors_in((inputs, kwargs))]
            if on_cuda is not None:
                torch.cuda.reset_peak_memory_stats(on_cuda)
                held_before = torch.cuda.memory_allocated(on_cuda)
            # The tracker is entered last, so it sees each operation first, before the counter takes it apart.
            with (
                FlopCounterMode(display=False, custom_mapping=ATTENTION) as flops,
                LiveTensorTracker(module, external) as tracker,
                ResidualBlockRecorder(module, tracker) as blocks,
            ):
                functional_call(module, state, inputs, kwargs) if fake else module(*inputs, **kwargs)
            if on_cuda is not None:
                cuda_peak = torch.cuda.max_memory_allocated(on_cuda) - held_before
    finally:
        for m, flag in training.items():
            m.training = flag

    return MemoryProfile(
        paper_peak=blocks.peak(),
        red_paper_peak=blocks.red_peak(),
        paper_peak_with_skips=blocks.peak(with_skips=True),
        tensor_peak=tracker.peak_bytes,
        tensor_peak_with_input=tracker.peak_bytes + sum(t.nbytes for t in {id(t): t for t in given}.values()),
        weights=sum(t.nbytes for t in state.values()),
        parameters=sum(p.numel() for p in module.parameters()),
        macs=flops.get_total_flops() // 2,
        peak_operation=tracker.peak_operation,
        peak_module=tracker.peak_module,
        live_at_peak=tracker.live_at_peak,
        cuda_peak=cuda_peak,
        timeline=memory_timeline(tracker),
    )
