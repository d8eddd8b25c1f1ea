"""Peak memory: pinned figures, hand calculations, and torch's own MemTracker as an independent measure."""

import json
import weakref
from collections.abc import Callable

import pytest
import torch
import torchvision
from memory_helpers import (
    MIB,
    GatedBlock,
    ResidualBlock,
    assert_fake_is_real,
    cifar10_teacher,
    conditional_unet,
    image,
    small_unet,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from ddpm_redistill.core.memory import MemoryProfile, profile_memory
from ddpm_redistill.students.derive import build_student
from ddpm_redistill.students.plan import plan_student


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    with torch.device("meta"):
        return cifar10_teacher()


# Pinned figures


def test_teacher_figures(teacher: nn.Module) -> None:
    profile = profile_memory(teacher, image(1, 32), torch.tensor(0))
    assert profile.paper_peak == 3_670_528
    assert profile.paper_peak_with_skips == 4.50048828125 * MIB
    assert profile.red_paper_peak == 0
    assert profile.tensor_peak == 7_342_600
    assert profile.peak_operation == "aten.silu.default"
    assert profile.peak_module == "up_blocks.3.resnets.0.nonlinearity"
    assert profile.parameters == 35_746_307
    assert profile.weights == 4 * 35_746_307


def test_input_bytes_are_those_of_every_input_tensor(teacher: nn.Module) -> None:
    with_int = profile_memory(teacher, image(1, 32), 0)
    assert with_int.tensor_peak == 7_342_600
    assert with_int.tensor_peak_with_input == 7_354_888  # 3 x 32 x 32 floats more
    with_tensor = profile_memory(teacher, image(1, 32), torch.zeros((), dtype=torch.int64, device="meta"))
    assert with_tensor.tensor_peak == 7_342_600
    assert with_tensor.tensor_peak_with_input == 7_354_888 + 8  # the int64 timestep


def test_what_lives_at_the_peak_adds_up_to_it(teacher: nn.Module) -> None:
    profile = profile_memory(teacher, image(1, 32), 0)
    sizes = [tensor.bytes for tensor in profile.live_at_peak]
    assert sum(sizes) == profile.tensor_peak
    assert sizes == sorted(sizes, reverse=True)
    # By hand: concatenation, its norm and its SiLU; the hidden map; three skips; the time embedding.
    assert sizes[:7] == [1.5 * MIB] * 3 + [MIB] + [0.5 * MIB] * 3
    assert profile.live_at_peak[0].shape == (1, 384, 32, 32)
    assert profile.live_at_peak[0].module == "up_blocks.3"  # the concatenation is in no submodule of it


def test_teacher_at_64_pixels(teacher: nn.Module) -> None:
    profile = profile_memory(teacher, image(1, 64), 0)
    assert profile.paper_peak == 14.00048828125 * MIB


def test_batch_4_takes_exactly_4_times_as_much(teacher: nn.Module) -> None:
    one, four = (profile_memory(teacher, image(batch, 32), 0) for batch in (1, 4))
    for name in ("paper_peak", "paper_peak_with_skips", "tensor_peak", "tensor_peak_with_input", "macs"):
        assert getattr(four, name) == 4 * getattr(one, name), name
    assert four.weights == one.weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_half_the_bytes(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        half = nn.Module.to(cifar10_teacher(), dtype)
    profile = profile_memory(half, image(1, 32).to(dtype), 0)
    assert profile.paper_peak == 3_670_528 // 2
    assert profile.weights == 2 * 35_746_307
    timestep = 8  # an int64 in both
    assert profile.tensor_peak == (7_342_600 - timestep) // 2 + timestep
    assert profile.peak_module == "up_blocks.3.resnets.0.nonlinearity"


# Against torch.distributed._tools.mem_tracker.MemTracker


def mem_tracker_activations(module: nn.Module, *inputs: Tensor) -> int:
    """Peak bytes of everything but parameters, buffers and inputs, as torch's own tracker has it."""
    tracker = MemTracker()
    tracker.track_external(module, *inputs)
    with torch.no_grad(), tracker:
        module(*inputs)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return sum(size for kind, size in peak.items() if getattr(kind, "name", "") in ("ACT", "TEMP"))


def cifar10_student() -> nn.Module:
    """The x2 student with all RED blocks."""
    config = dict(cifar10_teacher().config)
    return build_student(config, plan_student(config)).eval()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("build", [cifar10_teacher, cifar10_student])
def test_unets_agree_with_mem_tracker(build: Callable[[], nn.Module], batch: int) -> None:
    timesteps = torch.zeros(batch, dtype=torch.int64)
    with torch.device("meta"):
        network = build()
    with FakeTensorMode():
        again = type(network).from_config(network.config).eval()  # type: ignore[operator]
        expected = mem_tracker_activations(again, torch.empty(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.int64))
    assert profile_memory(network, image(batch, 32), timesteps).tensor_peak == expected > 0


@pytest.mark.parametrize("fake", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
def test_resnet18_agrees_with_mem_tracker(batch: int, fake: bool) -> None:
    network, x = torchvision.models.resnet18().eval(), torch.randn(batch, 3, 64, 64)
    assert profile_memory(network, x, fake=fake).tensor_peak == mem_tracker_activations(network, x)


# Real and fake tensors


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (small_unet, (torch.zeros(2, 1, 16, 16), torch.tensor([0, 3]))),
        (small_unet, (torch.zeros(1, 1, 16, 16), 3)),
        (torchvision.models.resnet18, (torch.zeros(1, 3, 64, 64),)),
        (torchvision.models.mobilenet_v2, (torch.zeros(1, 3, 64, 64),)),
        (conditional_unet, (torch.zeros(2, 4, 16, 16), 3, torch.zeros(2, 5, 8))),
    ],
    ids=["unet", "unet-int-timestep", "resnet18", "mobilenet_v2", "conditional-unet"],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_fake_equals_real(build: Callable[[], nn.Module], inputs: tuple[Tensor | int, ...], frozen: bool) -> None:
    network = build().requires_grad_(not frozen)
    real = profile_memory(network, *inputs, fake=False)
    fake = profile_memory(network, *inputs)
    assert_fake_is_real(fake, real)
    with torch.device("meta"):
        without_data = build().requires_grad_(not frozen)
    assert profile_memory(without_data, *inputs) == fake
    assert real.tensor_peak > 0
    assert real.cuda_peak is None
    # MobileNet has no block with two convolutions of these names: the paper's peak is not defined for it.
    assert (real.paper_peak is None) == isinstance(network, torchvision.models.MobileNetV2)


def test_multiply_accumulates_are_those_of_layers_and_attention() -> None:
    network, x = small_unet(), torch.zeros(1, 1, 16, 16)
    found = [0, 0]

    def of_layer(layer: nn.Module, args: tuple, output: Tensor) -> None:
        found[0] += output.numel() * layer.weight[0].numel()

    def of_attention(attention: nn.Module, args: tuple, output: Tensor) -> None:
        channels, tokens = output.shape[1], output[0, 0].numel()
        found[1] += 2 * tokens**2 * channels  # queries with keys, and weights with values

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(of_layer)
        elif type(module).__name__ == "Attention":
            module.register_forward_hook(of_attention)
    with torch.no_grad():
        network(x, 3)
    expected = sum(found)  # now: the profile runs the hooks again
    assert min(found) > 0
    assert profile_memory(network, x, 3).macs == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_peak() -> None:
    network, x = nn.Sequential(nn.ReLU(), nn.ReLU()), torch.zeros(1, 4, 64, 64, device="cuda")
    profile = profile_memory(network, x, fake=False)
    assert profile.cuda_peak == profile.tensor_peak == 2 * x.nbytes  # whole 512 byte blocks, and no workspace
    assert profile_memory(network, x).cuda_peak is None
    held = torch.zeros(2**20, device="cuda")  # was there before: not counted
    assert profile_memory(network, x, fake=False).cuda_peak == 2 * x.nbytes
    assert held.is_cuda


def test_fake_takes_no_memory() -> None:
    network = nn.Conv2d(3, 8, 1, device="meta")
    side = 2**18
    profile = profile_memory(network, image(1, side))
    assert profile.tensor_peak == 4 * 8 * side**2  # 2 TiB
    assert profile.tensor_peak_with_input == 4 * 11 * side**2


def test_tensors_in_keywords_and_of_another_fake_mode_are_inputs() -> None:
    network = small_unet()
    expected = profile_memory(network, torch.zeros(1, 1, 16, 16), 3)
    assert profile_memory(network, sample=torch.zeros(1, 1, 16, 16), timestep=3) == expected
    with FakeTensorMode():
        x = torch.zeros(1, 1, 16, 16)
    assert profile_memory(network, x, 3) == expected


def test_real_run_refuses_tensors_without_data() -> None:
    with pytest.raises(ValueError, match="real tensors"):
        profile_memory(nn.ReLU(), torch.zeros(1, device="meta"), fake=False)
    with pytest.raises(ValueError, match="real tensors"):
        profile_memory(nn.Linear(1, 1, device="meta"), torch.zeros(1), fake=False)

    # By hand


@pytest.mark.parametrize("fake", [True, False])
def test_two_convolutions_by_hand(fake: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    profile = profile_memory(network, torch.zeros(2, 3, 10, 10), fake=fake)
    hidden, image_bytes = 2 * 8 * 100 * 4, 2 * 3 * 100 * 4
    assert profile.tensor_peak == 2 * hidden  # in and out of the ReLU
    assert profile.tensor_peak_with_input == 2 * hidden + image_bytes
    assert (profile.peak_operation, profile.peak_module) == ("aten.relu.default", "1")
    assert [(t.module, t.shape, t.bytes) for t in profile.live_at_peak] == [
        ("0", (2, 8, 10, 10), hidden),
        ("1", (2, 8, 10, 10), hidden),
    ]
    assert profile.parameters == 8 * 27 + 8 + 4 * 72 + 4
    assert profile.weights == 4 * profile.parameters
    assert profile.macs == 2 * 100 * (8 * 27 + 4 * 72)
    assert profile.paper_peak is None
    assert profile.paper_peak_with_skips is None
    assert profile.red_paper_peak == 0


def test_in_place_results_and_views_are_no_new_memory() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Flatten())
    profile = profile_memory(network, torch.zeros(1, 3, 10, 10))
    assert profile.tensor_peak == 8 * 100 * 4
    assert profile_memory(nn.Flatten(), torch.zeros(1, 3, 10, 10)).tensor_peak == 0


def test_buffers_are_weights_and_not_parameters() -> None:
    profile = profile_memory(nn.BatchNorm2d(8), torch.zeros(1, 8, 4, 4))
    assert profile.parameters == 16
    assert profile.weights == 4 * 32 + 8  # scale, shift, mean, variance; an int64 counter


# What is left behind


def forward_hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Watched(nn.Module):
    """Notes the mode it runs in and keeps weak references to what it returns."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.fail = fail
        self.seen: list[tuple[bool, bool]] = []
        self.outputs: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled()))
        y: Tensor = self.conv(x)
        self.outputs.append(weakref.ref(y))
        if self.fail:
            raise RuntimeError("on purpose")
        return y


@pytest.mark.parametrize("fake", [True, False])
@pytest.mark.parametrize("fail", [True, False])
def test_module_is_left_as_it_was(fake: bool, fail: bool) -> None:
    watched = Watched(fail)
    blocks = nn.Sequential(ResidualBlock(1, 1), GatedBlock(1))
    network = nn.Sequential(watched, nn.BatchNorm2d(1), blocks).train()
    network[1].eval()
    calls: list[None] = []
    network[1].register_forward_hook(lambda *_: calls.append(None))  # a caller's own hook stays
    before, hooks = dict(network.named_parameters()), forward_hooks(network)
    if fail:
        with pytest.raises(RuntimeError, match="on purpose"):
            profile_memory(network, torch.zeros(1, 1, 2, 2), fake=fake)
    else:
        profile_memory(network, torch.zeros(1, 1, 2, 2), fake=fake)
        assert len(calls) == 1
    assert watched.seen == [(False, False)]
    assert [m.training for m in network] == [True, False, True]
    assert network.training
    assert forward_hooks(network) == hooks
    assert torch.is_grad_enabled()
    after = dict(network.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert type(network(torch.zeros(1, 1, 2, 2)) if not fail else torch.zeros(1)) is Tensor


@pytest.mark.parametrize("fake", [True, False])
def test_outputs_are_not_kept_alive(fake: bool) -> None:
    watched = Watched()
    profile = profile_memory(watched, torch.zeros(1, 1, 2, 2), fake=fake)
    assert profile.tensor_peak == 16
    assert [reference() for reference in watched.outputs] == [None]


def test_profile_is_json(teacher: nn.Module) -> None:
    profile = profile_memory(teacher, image(1, 32), 0)
    read = json.loads(json.dumps(profile.to_dict()))
    assert read == profile.to_dict()
    assert set(read) == set(MemoryProfile.__dataclass_fields__) - {"timeline"}
    assert len(profile.timeline) > 500
    assert read["live_at_peak"][0]["shape"] == [1, 384, 32, 32]
