"""Features gathered batch by batch: the same to the last digit whatever the batches, and no image kept."""

import hashlib

import pytest
import torch
from feature_helpers import DIM, Wrapped, extractor, pictures

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.features import CHUNK, FeatureAccumulator, extract_features, hash_images

COUNT = 2 * CHUNK + 6


@pytest.mark.parametrize("sizes", [[COUNT], [1] * COUNT, [5, 60, 5], [31, 1, 33, 0, 5], [33, 37]])
def test_batches_do_not_matter(sizes: list[int]) -> None:
    network, images = extractor(logits=True), pictures(COUNT, 0)
    found = FeatureAccumulator(network)
    for batch in images.split(sizes):
        found.add(batch)
    features = found.finish()
    assert network.module.batches == [CHUNK, CHUNK, 6]
    expected = extract_features(images, extractor(logits=True))
    assert torch.equal(features.values, expected.values)
    assert torch.equal(features.logits, expected.logits)
    assert features.images_sha256 == expected.images_sha256
    assert (features.values.shape, features.values.dtype) == ((COUNT, DIM), torch.float32)


def test_features_are_the_networks_of_each_image_in_order() -> None:
    network, images = extractor(), pictures(COUNT, 0)
    each = torch.cat([network(image[None])[0] for image in images])
    torch.testing.assert_close(extract_features(images, network).values, each)


def test_images_are_let_go() -> None:
    found = FeatureAccumulator(extractor())
    for batch in pictures(50 * CHUNK + 3, 0).split(100):
        found.add(batch)
        assert len(found._pending) < CHUNK
        assert found._pending.untyped_storage().nbytes() < CHUNK * 3 * 16 * 16  # no view of more


@pytest.mark.parametrize("channels", [1, 3])
def test_a_tensor_and_a_dataset_give_the_same(channels: int) -> None:
    images = pictures(COUNT, 0, channels)
    one, other = extract_features(images, extractor()), extract_features(Wrapped(images), extractor())
    assert torch.equal(one.values, other.values)
    assert one.images_sha256 == other.images_sha256
    assert one.statistics is one.statistics


def test_grey_is_three_equal_channels() -> None:
    grey = pictures(5, 0, 1)
    colour = grey.repeat(1, 3, 1, 1)
    assert torch.equal(extract_features(grey, extractor()).values, extract_features(colour, extractor()).values)


def test_the_hash_is_of_shape_and_pixels_in_order() -> None:
    images = pictures(COUNT, 0)
    digest = hashlib.sha256()
    for image in images:
        digest.update(b"(3, 16, 16)" + bytes(image.flatten().tolist()))
    assert extract_features(images, extractor()).images_sha256 == hash_images(images) == digest.hexdigest()
    changed = images.clone()
    changed[40, 1, 7, 7] ^= 1
    others = [changed, images.flip(0), images[:-1], images.view(COUNT, 3, 8, 32)]
    assert len({hash_images(each) for each in [images, *others]}) == 5
    assert hash_images(Wrapped(images)) == hash_images(images)


def test_progress_goes_to_standard_error_only(capsys: pytest.CaptureFixture[str]) -> None:
    extract_features(pictures(4, 0), extractor(), progress="teacher features")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "teacher features" in shown.err
    extract_features(pictures(4, 0), extractor())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no images"),
        ([torch.zeros(0, 3, 8, 8, dtype=torch.uint8)], "no images"),
        ([torch.zeros(2, 3, 8, 8)], "float32"),
        ([torch.zeros(2, 4, 8, 8, dtype=torch.uint8)], r"\(2, 4, 8, 8\)"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], r"\(3, 8, 8\)"),
        ([pictures(2, 0), pictures(2, 0, channels=1)], r"\(3, 16, 16\) and then \(1, 16, 16\)"),
        ([pictures(2, 0), pictures(2, 0)[..., :8]], "of one shape"),
    ],
)
def test_refusals_are_one_line(batches: list[torch.Tensor], message: str) -> None:
    def measure() -> None:
        found = FeatureAccumulator(extractor())
        for batch in batches:
            found.add(batch)
        found.finish()

    with pytest.raises(UserError, match=message) as caught:
        measure()
    assert "\n" not in str(caught.value)


def test_a_dataset_of_mixed_sizes_is_refused() -> None:
    class Mixed(Wrapped):
        def __getitem__(self, index: int) -> torch.Tensor:
            return self.images[index][:, : 8 + index]

    with pytest.raises(UserError, match="of one size"):
        extract_features(Mixed(pictures(2, 0)), extractor())
