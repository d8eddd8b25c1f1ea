"""Nearest training images against brute force, how copies show, and a picture with every pair in its place."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation import nearest
from ddpm_redistill.evaluation.nearest import nearest_images, nearest_picture, nearest_summary

DIM = 12


def rows(count: int, seed: int, offset: float = 0.0) -> Tensor:
    """float32 (count, DIM); ``offset`` moves them far from 0, where |x|^2 + |y|^2 - 2 xy loses its digits."""
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)) + offset


def brute_force(features: Tensor, data: Tensor) -> np.ndarray:
    """All distances (n, N)."""
    a, b = features.double().numpy(), data.double().numpy()
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))


@pytest.fixture(params=[1024, 7, 1], ids=lambda chunk: f"chunk {chunk}")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_nearest_equals_brute_force(offset: float) -> None:
    features, data = rows(23, 0, offset), rows(40, 1, offset)
    indices, distances = nearest_images(features, data)
    expected = brute_force(features, data)
    assert (indices.shape, indices.dtype, distances.shape, distances.dtype) == (
        (23,),
        torch.int64,
        (23,),
        torch.float32,
    )
    assert indices.tolist() == expected.argmin(1).tolist()
    np.testing.assert_allclose(distances, expected.min(1), rtol=1e-6)


@pytest.mark.usefixtures("chunk")
def test_copies_are_found_at_exactly_zero() -> None:
    data = rows(40, 1, 100.0)
    copied = [39, 0, 17, 6, 7, 8]
    indices, distances = nearest_images(data[copied], data)
    assert indices.tolist() == copied
    assert distances.tolist() == [0.0] * len(copied)


@pytest.mark.usefixtures("chunk")
def test_data_leaves_each_image_out_itself() -> None:
    data = rows(15, 1)
    summary = nearest_summary({"student": rows(15, 0)}, data)
    others = brute_force(data, data)
    np.fill_diagonal(others, np.inf)
    expected = others.min(1)
    assert summary["data_to_data"]["mean"] == pytest.approx(expected.mean())
    assert summary["data_to_data"]["quantiles"]["5"] == pytest.approx(np.percentile(expected, 5))
    twice = nearest_summary({"student": rows(30, 0)}, torch.cat([data, data]))
    assert twice["data_to_data"]["mean"] == 0.0  # an image that is there twice is its own nearest


def test_data_queries_are_as_many_as_samples_and_spread() -> None:
    """Ten data images in two far groups, two samples: the first and the last image are looked up."""
    data = torch.zeros(10, DIM)
    data[:5, 0] = torch.arange(5) * 1.0
    data[5:, 0] = 1000 + torch.arange(5) * 10.0
    found = nearest_summary({"student": rows(2, 0)}, data)["data_to_data"]
    assert found["mean"] == pytest.approx((1 + 10) / 2)


def test_summary_as_the_report_has_it_and_memorising_shows() -> None:
    data = rows(60, 1)
    fresh, copied = rows(20, 2), data[:20] + 1e-3 * rows(20, 3)
    summary = json.loads(json.dumps(nearest_summary({"student": copied, "teacher": fresh}, data), allow_nan=False))
    assert summary.keys() == {"num_samples", "student_to_data", "teacher_to_data", "data_to_data"}
    assert summary["num_samples"] == 20
    for key in ("student_to_data", "teacher_to_data", "data_to_data"):
        assert summary[key].keys() == {"mean", "quantiles"}
        assert list(summary[key]["quantiles"]) == ["5", "25", "50", "75", "95"]
    assert summary["teacher_to_data"]["mean"] == pytest.approx(brute_force(fresh, data).min(1).mean())
    assert summary["teacher_to_data"]["mean"] == pytest.approx(summary["data_to_data"]["mean"], rel=0.3)
    assert summary["student_to_data"]["mean"] < 0.01 * summary["data_to_data"]["mean"]


def squares(values: list[int], size: int = 16) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, size, size).contiguous()


def test_picture_shows_every_pair_in_its_place() -> None:
    upper, lower = [10, 30, 50, 70, 90], [20, 40, 60, 80, 100]
    picture = nearest_picture(squares(upper), squares(lower), torch.arange(5) / 3, columns=3)
    grey = np.asarray(picture.convert("L"))
    places = {value: np.argwhere(grey == value).mean(0) for value in upper + lower}
    for above, below in zip(upper, lower, strict=True):
        assert (grey == above).sum() > 3500, "64 x 64, but for labels"
        assert places[below][1] == pytest.approx(places[above][1], abs=1), "in one column"
        assert 60 < places[below][0] - places[above][0] < 80, "right below"
    assert places[10][0] == pytest.approx(places[50][0], abs=1)  # three to a row
    assert places[70][0] > places[20][0] + 60  # then the next
    under = grey[int(places[20][0]) + 40 : int(places[70][0]) - 40]
    assert under.min() < 120, "a distance is written between the rows"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_picture_of_few_or_a_left_over_one(count: int) -> None:
    values = [10 * (i + 1) for i in range(count)]
    picture = nearest_picture(squares(values), squares([200] * count), torch.zeros(count), columns=3)
    grey = np.asarray(picture.convert("L"))
    assert all((grey == value).sum() > 3500 for value in values)
    assert (grey == 200).sum() >= 64 * 64 * count


def test_refusals_are_one_line() -> None:
    data = rows(5, 0)
    cases = [
        lambda: nearest_images(data[:0], data),
        lambda: nearest_images(data, data[:0]),
        lambda: nearest_images(data[:, :3], data),
        lambda: nearest_images(data[0], data),
        lambda: nearest_summary({}, data),
        lambda: nearest_summary({"student": data, "teacher": data[:2]}, data),
        lambda: nearest_summary({"student": data}, data[:1]),
        lambda: nearest_picture(squares([1, 2]), squares([1]), torch.zeros(2), 3),
        lambda: nearest_picture(squares([1, 2]), squares([1, 2]), torch.zeros(1), 3),
        lambda: nearest_picture(squares([]), squares([]), torch.zeros(0), 3),
        lambda: nearest_picture(squares([1, 2]), squares([1, 2]), torch.zeros(2), 0),
    ]
    for case in cases:
        with pytest.raises(UserError) as caught:
            case()
        assert "\n" not in str(caught.value)
