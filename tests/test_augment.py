"""Augmentation against torchvision and against its own definition."""

import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from ddpm_redistill.core.augment import PADDING, flipped, normalised, padded_crop, random_boxes, resized_crop

CPU = torch.device("cpu")


def images_of(count: int = 6, size: int = 12) -> torch.Tensor:
    return torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_flipped_images_are_mirrored_left_to_right():
    images, flips = images_of(4), torch.tensor([True, False, True, False])
    found = flipped(images, flips)
    assert torch.equal(found, torch.stack([TF.hflip(i) if flip else i for i, flip in zip(images, flips, strict=True)]))
    assert found.dtype == torch.uint8


def test_a_padded_crop_is_torchvisions():
    images = images_of()
    offsets = torch.tensor([[0, 0], [8, 8], [4, 4], [0, 8], [3, 7], [5, 2]])
    found = padded_crop(images, offsets)
    assert found.dtype == torch.uint8
    for image, (top, left), result in zip(images, offsets.tolist(), found, strict=True):
        assert torch.equal(result, TF.crop(TF.pad(image, PADDING), top, left, 12, 12))
    assert torch.equal(found[2], images[2])
    assert found[0, :, :4].eq(0).all()


def test_a_resized_crop_is_torchvisions():
    images, boxes = images_of(), random_boxes(6, 12, torch.Generator().manual_seed(1), CPU)
    found = resized_crop(images, boxes)
    assert found.dtype == torch.uint8
    for image, box, result in zip(images, boxes.tolist(), found, strict=True):
        expected = TF.resized_crop(image.float(), *box, [12, 12], antialias=True)
        assert (result.float() - expected).abs().max() <= 0.5 + 1e-3
    whole = torch.tensor([[0, 0, 12, 12]]).expand(6, 4)
    assert torch.equal(resized_crop(images, whole), images)


def test_boxes_lie_in_the_image_and_have_torchvisions_distribution():
    count, side = 4000, 64
    boxes = random_boxes(count, side, torch.Generator().manual_seed(0), CPU)
    top, left, height, width = boxes.unbind(1)
    assert boxes.dtype == torch.int64
    assert boxes.min() >= 0
    assert (top + height).max() <= side
    assert (left + width).max() <= side
    torch.manual_seed(0)
    image = torch.empty(1, side, side)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    for mine, other in zip(boxes.unbind(1), theirs.unbind(1), strict=True):
        # Kolmogorov-Smirnov of two samples of n each: above 1.95 sqrt(2 / n) once in 1,000.
        values = torch.arange(side + 1)[:, None]
        distance = ((mine <= values).double().mean(1) - (other <= values).double().mean(1)).abs().max()
        assert distance < 1.95 * (2 / count) ** 0.5
    areas = (height * width).double() / side**2
    assert 0.07 < areas.min() < 0.12
    assert areas.max() > 0.95


def test_boxes_of_one_pixel_are_the_image():
    assert random_boxes(3, 1, torch.Generator().manual_seed(0), CPU).tolist() == [[0, 0, 1, 1]] * 3


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_is_torchvisions(channels):
    images, mean, std = images_of()[:, :channels], (0.49, 0.48, 0.45)[:channels], (0.2, 0.3, 0.25)[:channels]
    expected = TF.normalize(images.float() / 255, list(mean), list(std))
    torch.testing.assert_close(normalised(images, mean, std), expected)
