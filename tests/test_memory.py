"""Peak memory: pinned figures, hand calculations, and torch's own MemTracker as an independent measure."""

import json
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from ddpm_redistill.core.memory import LiveTensorTracker, MemoryProfile, profile_memory

MiB = 2**20


def cifar10_teacher() -> nn.Module:
    """The network of google/ddpm-cifar10-32."""
    return UNet2DModel(  # type: ignore[return-value]
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def small_unet() -> nn.Module:
    return UNet2DModel(  # type: ignore[return-value]
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    with torch.device("meta"):
        return cifar10_teacher()


def image(batch: int, size: int, channels: int = 3) -> Tensor:
    return torch.empty(batch, channels, size, size, device="meta")


# Pinned figures


def test_teacher_figures(teacher: nn.Module) -> None:
    profile = profile_memory(teacher, image(1, 32), torch.tensor(0))
    assert profile.paper_peak == 3_670_528
    assert profile.paper_peak_with_skips == 4.50048828125 * MiB
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
    assert sizes[:7] == [1.5 * MiB] * 3 + [MiB] + [0.5 * MiB] * 3
    assert profile.live_at_peak[0].shape == (1, 384, 32, 32)
    assert profile.live_at_peak[0].module == "up_blocks.3"  # the concatenation is in no submodule of it


def test_teacher_at_64_pixels(teacher: nn.Module) -> None:
    profile = profile_memory(teacher, image(1, 64), 0)
    assert profile.paper_peak == 14.00048828125 * MiB


def test_batch_4_takes_exactly_4_times_as_much(teacher: nn.Module) -> None:
    one, four = (profile_memory(teacher, image(batch, 32), 0) for batch in (1, 4))
    for name in ("paper_peak", "paper_peak_with_skips", "tensor_peak", "tensor_peak_with_input", "macs"):
        assert getattr(four, name) == 4 * getattr(one, name), name
    assert four.weights == one.weights


def test_bytes_are_those_of_the_dtype_run(teacher: nn.Module) -> None:
    with torch.device("meta"):
        half = cifar10_teacher().to(torch.bfloat16)
    profile = profile_memory(half, image(1, 32).to(torch.bfloat16), 0)
    assert profile.paper_peak == 3_670_528 // 2
    assert profile.weights == 2 * 35_746_307


# Against torch.distributed._tools.mem_tracker.MemTracker


def mem_tracker_activations(module: nn.Module, *inputs: Tensor) -> int:
    """Peak bytes of everything but parameters, buffers and inputs, as torch's own tracker has it."""
    tracker = MemTracker()
    tracker.track_external(module, *inputs)
    with torch.no_grad(), tracker:
        module(*inputs)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return sum(size for kind, size in peak.items() if getattr(kind, "name", "") in ("ACT", "TEMP"))


@pytest.mark.parametrize("batch", [1, 2])
def test_teacher_agrees_with_mem_tracker(teacher: nn.Module, batch: int) -> None:
    with FakeTensorMode():
        expected = mem_tracker_activations(
            cifar10_teacher().eval(), torch.empty(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.int64)
        )
    timesteps = torch.zeros(batch, dtype=torch.int64)
    assert profile_memory(teacher, image(batch, 32), timesteps).tensor_peak == expected


@pytest.mark.parametrize("fake", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
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
    ],
    ids=["unet", "unet-int-timestep", "resnet18"],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_fake_equals_real(build: Callable[[], nn.Module], inputs: tuple[Tensor | int, ...], frozen: bool) -> None:
    network = build().requires_grad_(not frozen)
    real = profile_memory(network, *inputs, fake=False)
    assert profile_memory(network, *inputs) == real
    with torch.device("meta"):
        without_data = build().requires_grad_(not frozen)
    assert profile_memory(without_data, *inputs) == real
    assert real.tensor_peak > 0
    assert real.paper_peak is not None


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


class ResidualBlock(nn.Module):
    """A pre-activation block: `channels` in and out, `width` between, a time embedding when asked."""

    def __init__(self, channels: int, width: int, time_embedding: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(5, width) if time_embedding else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(x))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(h.new_ones(len(x), 5))[:, :, None, None]
        return x + self.conv2(F.silu(h))


@pytest.mark.parametrize("time_embedding", [False, True])
def test_paper_peak_of_one_block(time_embedding: bool) -> None:
    profile = profile_memory(ResidualBlock(4, 6, time_embedding), torch.zeros(1, 4, 8, 8))
    assert profile.paper_peak == 4 * (64 * (4 + 6) + 6 * time_embedding + 64 * 4)


def test_paper_peak_of_a_block_whose_second_convolution_is_larger() -> None:
    block = ResidualBlock(4, 6)
    block.conv2 = nn.Conv2d(6, 4 * 5, 3, padding=1)
    block.forward = lambda x: block.conv2(block.conv1(x))  # type: ignore[method-assign]
    assert profile_memory(block, torch.zeros(1, 4, 8, 8)).paper_peak == 4 * 64 * (6 + 20 + 4)


class SkipNetwork(nn.Module):
    """stem, then `layers` blocks, then one of: the stem's map concatenated, added, or left alone."""

    def __init__(self, layers: int, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(4, 4) for _ in range(layers)))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        return self.join(self.blocks(skip), skip)


@pytest.mark.parametrize(
    ("layers", "join", "skips"),
    [
        (2, lambda h, skip: torch.cat([h, skip], 1), 1),
        (2, lambda h, skip: torch.cat([h, skip.view_as(skip)], 1), 1),
        (2, lambda h, skip: torch.cat([h, skip, skip], 1), 1),  # one storage read twice
        (1, lambda h, skip: torch.cat([h, skip], 1), 0),  # the block's own input: counted already
        (2, lambda h, skip: h + skip, 0),
        (2, lambda h, skip: torch.cat([h, h], 1), 0),
    ],
    ids=["cat", "cat of a view", "twice", "block input", "sum", "dead"],
)
def test_long_skips(layers: int, join: Callable[[Tensor, Tensor], Tensor], skips: int) -> None:
    profile = profile_memory(SkipNetwork(layers, join), torch.zeros(1, 3, 8, 8))
    feature_map = 4 * 64 * 4
    assert profile.paper_peak == 3 * feature_map
    assert profile.paper_peak_with_skips == (3 + skips) * feature_map


class GatedBlock(nn.Module):
    """A RED block by structure."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate_conv = nn.Conv2d(channels, channels, 1)
        self.residual_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate_conv(x).sigmoid() + F.relu6(self.residual_conv(x))


def test_red_paper_peak() -> None:
    # The widest RED blocks of the x2 CIFAR-10 student at 16 px: 128 channels of 2 blocks, 256 of 10.
    assert profile_memory(GatedBlock(128), image(1, 16, 128)).red_paper_peak == 393_216
    network = nn.Sequential(GatedBlock(128), nn.Conv2d(128, 256, 1), GatedBlock(256), nn.AvgPool2d(2))
    profile = profile_memory(network, image(1, 16, 128))
    assert profile.red_paper_peak == 786_432
    assert profile.paper_peak is None


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
    assert set(read) == set(MemoryProfile.__dataclass_fields__)
    assert read["live_at_peak"][0]["shape"] == [1, 384, 32, 32]


# The tracker by itself


def test_tracker_timeline_and_deaths() -> None:
    network, x = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU()), torch.zeros(100)
    with torch.no_grad(), LiveTensorTracker(network, [x]) as tracker:
        y = network(x)
        assert tracker.live_bytes == 400
        del y
        assert tracker.live_bytes == 0
    assert [(op.module, op.live_bytes) for op in tracker.timeline] == [("0", 400), ("1", 800), ("2", 800)]
    assert [op.reads for op in tracker.timeline] == [(), (0,), (1,)]
    assert tracker.peak_bytes == 800
    assert tracker.peak_module == "1"  # the first to reach it


def test_module_path_survives_a_failure_that_the_forward_catches() -> None:
    class Fallback(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            try:
                y: Tensor = self.linear(x)
            except RuntimeError:
                y = x.relu()
            return y

    module = nn.Sequential(Fallback())
    with LiveTensorTracker(module) as tracker:
        module(torch.zeros(3))
    assert (tracker.timeline[-1].name, tracker.timeline[-1].module) == ("aten.relu.default", "0")


def test_shared_module_goes_by_the_path_of_its_caller() -> None:
    shared = nn.ReLU()
    network = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    x = torch.zeros(4)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = network

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.part["b"](self.part["a"](x))
            return y

    module = Both()
    with LiveTensorTracker(module, [x]) as tracker:
        module(x)
    assert [op.module for op in tracker.timeline] == ["part.a.0", "part.b.0"]


def test_resized_storage_is_counted_anew() -> None:
    with LiveTensorTracker(nn.Identity()) as tracker:
        t = torch.zeros(10)
        t.resize_(1000)
        assert tracker.live_bytes == tracker.peak_bytes == 4000
