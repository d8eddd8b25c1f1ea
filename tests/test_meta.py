"""Passes over the meta device against real ones on the CPU: each operation's result, and the peaks of networks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from student_helpers import step
from torch import Tensor

from ddpm_redistill.core import meta
from ddpm_redistill.core.live_tensors import LiveTensorTracker
from ddpm_redistill.core.memory import profile_memory
from ddpm_redistill.core.meta import meta_as_cpu
from ddpm_redistill.pipelines.lean import lean_execution
from ddpm_redistill.students.footprint import network_memory, network_peak

# Each reads x (2, 8, 6, 4) and y of the same shape; x is a view that does not begin where its storage does.
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "new": lambda x, y: x + y,
    "number": lambda x, y: x * 2,
    "of another dtype": lambda x, y: x.to(torch.bfloat16),
    "an integer and a float": lambda x, y: x.long() * 1.5,
    "an integer and an integer": lambda x, y: x.long() * 1,
    "comparison": lambda x, y: x > y,
    "written to": lambda x, y: x.add_(y),
    "written to by itself": lambda x, y: x.add_(x),
    "out": lambda x, y: torch.mul(x, x, out=y),
    "out is an argument": lambda x, y: torch.mul(x, y, out=x),
    "out is resized": lambda x, y: torch.mul(x, y, out=torch.empty(0, device=x.device)),
    "several": lambda x, y: torch.var_mean(x, dim=(2, 3)),
    "norm": lambda x, y: torch.native_group_norm(x, None, None, 2, 8, 24, 4, 1e-5),
    "norm in eval mode": lambda x, y: torch.native_batch_norm(
        x, None, None, x.new_zeros(8), x.new_ones(8), False, 0.1, 1e-5
    ),
    "list of tensors": lambda x, y: torch.cat([x, y, x], 1),
    "views": lambda x, y: x.split(3, 1),
    "view of a strip": lambda x, y: x[:, :, 2:4].unsqueeze(0),
    "reshaped": lambda x, y: x.transpose(1, 2).reshape(12, 32),
    "transposed in place": lambda x, y: y.transpose_(1, 2),
    "channels last": lambda x, y: F.silu(x.contiguous(memory_format=torch.channels_last)),
    "convolution": lambda x, y: F.conv2d(x, y.new_zeros(5, 8, 3, 3), padding=1),
    "enlarged": lambda x, y: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "attention": lambda x, y: F.scaled_dot_product_attention(x, y, y),
    "masked attention": lambda x, y: F.scaled_dot_product_attention(x, y, y, attn_mask=x.new_zeros(6, 6)),
}


def traits(out: Any, given: tuple[Tensor, ...]) -> list[Any]:
    """Of each tensor that is returned all but its values, and where it is a given one, or a view of one."""
    storages = [t.untyped_storage()._cdata for t in given]
    found: list[Any] = [type(out)]
    for t in [out] if isinstance(out, Tensor) else out:
        storage = t.untyped_storage()
        place = storages.index(storage._cdata) if storage._cdata in storages else None
        same = [t is other for other in given]
        found.append((t.shape, t.stride(), t.storage_offset(), t.dtype, storage.nbytes(), place, same))
    return found


def inputs(device: str) -> tuple[Tensor, Tensor]:
    x, y = torch.zeros(3, 8, 6, 4, device=device), torch.zeros(2, 8, 6, 4, device=device)
    return x[1:], y


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    known: dict[Any, Any] = {}
    monkeypatch.setattr(meta, "_results", known)
    return known


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_results_are_those_of_a_cpu(name: str, nothing_known: dict[Any, Any]) -> None:
    real = inputs("cpu")
    with torch.no_grad():
        expected = [traits(OPERATIONS[name](*real), real), *((t.shape, t.stride()) for t in real)]
    for _ in range(2):  # computed, then known
        given = inputs("meta")
        with torch.no_grad(), meta_as_cpu():
            found = [traits(OPERATIONS[name](*given), given), *((t.shape, t.stride()) for t in given)]
        assert found == expected


def test_which_tensors_are_one_is_part_of_the_question(nothing_known: dict[Any, Any]) -> None:
    """What is known of ``x.add_(x)`` does not hold for ``x.add_(y)``: the latter must not give back y."""
    with torch.no_grad(), meta_as_cpu():
        x, y = inputs("meta")
        assert x.add_(x) is x
        assert x.add_(y) is x
        assert torch.mul(x, y, out=x) is x
        z = torch.empty_like(x)
        assert torch.mul(x, y, out=z) is z


def test_the_default_dtype_is_part_of_the_question(nothing_known: dict[Any, Any]) -> None:
    with torch.no_grad(), meta_as_cpu():
        counts = torch.empty(3, dtype=torch.long, device="meta")
        assert (counts * 0.5).dtype == torch.float32
        torch.set_default_dtype(torch.float64)
        try:
            assert (counts * 0.5).dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)


def test_an_operation_is_computed_once(nothing_known: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    ask = meta._result_on_cpu
    monkeypatch.setattr(meta, "_result_on_cpu", lambda func, *rest: asked.append(func) or ask(func, *rest))
    with torch.no_grad(), meta_as_cpu():
        for rows in (4, 4, 3):
            torch.empty(2, 8, rows, 5, device="meta").mul_(2)
    assert [str(func) for func in asked] == ["aten.mul_.Tensor"] * 2


def test_a_mistake_is_raised_each_time(nothing_known: dict[Any, Any]) -> None:
    x, y = torch.empty(2, 3, device="meta"), torch.empty(4, 5, device="meta")
    for _ in range(2):
        with torch.no_grad(), meta_as_cpu(), pytest.raises(RuntimeError):
            x @ y
    assert not nothing_known


# Networks


def live_bytes(unet: UNet2DModel, device: str) -> list[tuple[str, str, int]]:
    """Of a pass each operation, the module it ran in, and the bytes alive after it."""
    sample = torch.zeros(1, unet.config.in_channels, 16, 16, device=device)
    timesteps = torch.zeros(1, dtype=torch.long, device=device)
    tracker = LiveTensorTracker(unet, [*unet.parameters(), *unet.buffers(), sample, timesteps])
    with torch.no_grad():
        if device == "cpu":
            with tracker:
                unet(sample, timesteps)
        else:
            with meta_as_cpu(), tracker:
                unet(sample, timesteps)
    return [(operation.name, operation.module, operation.live_bytes) for operation in tracker.timeline]


@pytest.mark.parametrize("lean", [None, "smallest"])
@pytest.mark.parametrize("student", [False, True])
def test_every_operation_of_a_network_is_a_cpus(tiny_config: dict[str, Any], student: bool, lean: str | None) -> None:
    unet = UNet2DModel(**tiny_config).eval()
    if student:
        unet = step(unet)[1]
    found = {}
    for device in ("cpu", "meta"):
        unet = unet.to(device)
        if lean:
            with lean_execution(unet, lean):
                found[device] = live_bytes(unet, device)
        else:
            found[device] = live_bytes(unet, device)
    attentions = [i for i, (name, *_) in enumerate(found["meta"]) if name.startswith("aten.set_.")]
    assert attentions
    for i in reversed(attentions):  # what is returned by attention is made a meta tensor again, of no bytes of its own
        del found["meta"][i - 1 : i + 1]
    assert found["meta"] == found["cpu"]


@pytest.mark.parametrize("lean", [None, "smallest"])
def test_peaks_are_those_of_a_real_pass(architecture: dict[str, Any], lean: str | None) -> None:
    teacher = UNet2DModel(**architecture).eval()
    for unet in (teacher, step(teacher)[1]):
        sample = torch.zeros(1, unet.config.in_channels, 16, 16)
        if lean:
            with lean_execution(unet, lean):
                real = profile_memory(unet, sample, 0, fake=False).tensor_peak
        else:
            real = profile_memory(unet, sample, 0, fake=False).tensor_peak
        assert network_peak(unet, lean=lean) == (real, True)
        assert network_peak(unet, lean=lean, limit=real) == (real, True)
        bound, within = network_peak(unet, lean=lean, limit=real - 1)
        assert (bound, within) == (real, False)


def test_peaks_of_other_batches_sizes_and_dtypes(tiny_config: dict[str, Any]) -> None:
    unet = UNet2DModel(**tiny_config).eval()
    at: dict[str, Any] = {"batch_size": 3, "image_size": 32, "dtype": torch.bfloat16, "lean": "balanced"}
    assert network_peak(unet, **at)[0] == network_memory(unet, **at).tensor_peak
    assert unet.dtype == torch.float32
