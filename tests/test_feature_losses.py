"""Every distance of feature maps against loops over numpy arrays, and what it does not see."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ddpm_redistill.core.feature_losses import (
    Regressors,
    attention_mean_square,
    attention_norm,
    feature_mse,
    mean_over_pairs,
    red_distance,
    similarity,
)


def red_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return red_distance(student, teacher, "mse")


def red_cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return red_distance(student, teacher, "cosine")


# --- by hand, one sample at a time


def numpy_red(student: np.ndarray, teacher: np.ndarray, distance: str) -> float:
    per_sample = []
    for one, other in zip(student.mean(1), teacher.mean(1), strict=True):
        a, b = one.ravel(), other.ravel()
        cosine = a @ b / np.sqrt((a @ a) * (b @ b))
        per_sample.append(((a - b) ** 2).mean() if distance == "mse" else 1 - cosine)
    return float(np.mean(per_sample))


def numpy_attention(feature_map: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (H*W,): each position's sum of squares, as a vector of length 1."""
    channels, height, width = feature_map.shape
    found = np.zeros((height, width))
    for channel in range(channels):
        found += feature_map[channel] ** 2
    return found.ravel() / np.sqrt((found**2).sum())


def numpy_attention_norm(student: np.ndarray, teacher: np.ndarray) -> float:
    pairs = zip(student, teacher, strict=True)
    return float(np.mean([np.linalg.norm(numpy_attention(s) - numpy_attention(t)) for s, t in pairs]))


def numpy_attention_mean_square(student: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total += sum((a - b) ** 2 for a, b in zip(numpy_attention(s), numpy_attention(t), strict=True))
    return total / (len(student) * student[0, 0].size)


def numpy_similarity(student: np.ndarray, teacher: np.ndarray) -> float:
    batch = len(student)
    rows = []
    for feature_map in (student, teacher):
        gram = [[float((one * other).sum()) for other in feature_map] for one in feature_map]
        rows.append([[value / np.sqrt(sum(v * v for v in row)) for value in row] for row in gram])
    entries = [(i, j) for i in range(batch) for j in range(batch)]
    return sum((rows[0][i][j] - rows[1][i][j]) ** 2 for i, j in entries) / batch**2


TERMS = [
    (red_mse, lambda s, t: numpy_red(s, t, "mse")),
    (red_cosine, lambda s, t: numpy_red(s, t, "cosine")),
    (attention_norm, numpy_attention_norm),
    (attention_mean_square, numpy_attention_mean_square),
    (similarity, numpy_similarity),
]
ANY_CHANNELS = [term for term, _ in TERMS]
ALL = [*ANY_CHANNELS, feature_mse]


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0.3, 1, shape).astype(np.float32))


@pytest.mark.parametrize(("term", "by_hand"), TERMS)
def test_terms_whose_channel_counts_need_not_agree(term, by_hand) -> None:
    shapes = [((4, 3, 6, 6), (4, 3, 6, 6)), ((4, 2, 3, 3), (4, 7, 3, 3)), ((4, 5, 8, 8), (4, 1, 8, 8))]
    pairs = [(maps(*student, seed=1), maps(*teacher, seed=2)) for student, teacher in shapes]
    expected = [by_hand(student.double().numpy(), teacher.double().numpy()) for student, teacher in pairs]
    assert [term(*pair).item() for pair in pairs] == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert min(expected) > 1e-4
    assert mean_over_pairs(term, pairs).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_feature_mse() -> None:
    student, teacher = maps(4, 3, 5, 5, seed=1), maps(4, 3, 5, 5, seed=2)
    expected = np.mean([(a - b) ** 2 for a, b in zip(student.numpy().ravel(), teacher.numpy().ravel(), strict=True)])
    assert feature_mse(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_two_forms_of_attention_transfer_differ_by_their_scale() -> None:
    """For one sample the mean square is the squared norm over H*W."""
    student, teacher = maps(1, 3, 4, 6, seed=1), maps(1, 5, 4, 6, seed=2)
    norm = attention_norm(student, teacher).item()
    assert attention_mean_square(student, teacher).item() == pytest.approx(norm**2 / 24, rel=1e-5)


# --- what a term does not see, and what it does


@pytest.mark.parametrize("term", ALL)
def test_a_map_is_no_distance_from_itself_and_has_a_finite_gradient_there(term) -> None:
    teacher = maps(3, 4, 5, 5)
    student = teacher.clone().requires_grad_()
    distance = term(student, teacher)
    distance.backward()
    assert distance.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("term", ALL)
def test_every_element_of_the_student_is_taught(term) -> None:
    student = maps(3, 4, 5, 5, seed=1).requires_grad_()
    distance = term(student, maps(3, 4, 5, 5, seed=2))
    distance.backward()
    assert distance.shape == ()
    assert (student.grad != 0).all()


@pytest.mark.parametrize("term", [attention_norm, attention_mean_square])
def test_attention_transfer_sees_neither_scale_nor_sign_nor_channel_order(term) -> None:
    student, teacher = maps(3, 4, 5, 5, seed=1), maps(3, 4, 5, 5, seed=2)
    distance = term(student, teacher)
    per_sample = torch.tensor([0.01, 3.0, 50.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(term(-per_sample * student[:, [2, 0, 3, 1]], teacher), distance, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(term(student, per_sample * teacher), distance, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(term(student.repeat(1, 2, 1, 1), teacher), distance, rtol=1e-4, atol=1e-7)


def test_similarity_sees_neither_the_scale_of_a_map_nor_its_order_of_features() -> None:
    student, teacher = maps(3, 4, 5, 5, seed=1), maps(3, 2, 7, 7, seed=2)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    shuffled = student.flatten(1)[:, order].view(3, 10, 5, 2)
    torch.testing.assert_close(similarity(7 * shuffled, teacher), similarity(student, teacher), rtol=1e-4, atol=1e-7)
    assert similarity(student[:1], teacher[:1]).item() == 0


@pytest.mark.parametrize("term", [red_mse, red_cosine])
def test_red_sees_the_channels_mean_alone(term) -> None:
    student, teacher = maps(3, 4, 5, 5, seed=1), maps(3, 2, 5, 5, seed=2)
    mean = student.mean(1, keepdim=True)
    torch.testing.assert_close(term(mean.repeat(1, 6, 1, 1), teacher), term(student, teacher))


@pytest.mark.parametrize("term", ALL)
def test_half_precision_maps_are_compared_in_float32(term) -> None:
    student, teacher = 300 * maps(3, 4, 5, 5, seed=1).half(), maps(3, 4, 5, 5, seed=2).half()  # 300^2 overflows a half
    wanted = term(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = term(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)


def test_zero_maps_have_finite_gradients() -> None:
    for term in ANY_CHANNELS:
        student = torch.zeros(2, 3, 4, 4, requires_grad=True)
        term(student, maps(2, 3, 4, 4)).backward()
        assert student.grad.isfinite().all(), term


# --- refusals


@pytest.mark.parametrize("term", [red_mse, red_cosine, attention_norm, attention_mean_square])
def test_maps_of_different_resolution_are_refused(term) -> None:
    with pytest.raises(ValueError, match="differ in resolution"):
        term(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 2))


def test_feature_mse_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\) and \(1, 1, 4, 4\) differ in shape"):
        feature_mse(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))


def test_an_unknown_red_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown RED distance 'l1'"):
        red_distance(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), "l1")


# --- regressors


def test_regressors_map_the_channels_of_each_tap() -> None:
    torch.manual_seed(0)
    regressors = Regressors([(3, 5), (4, 2)])
    students = [maps(2, 3, 4, 4), maps(2, 4, 6, 6)]
    found = regressors(students)
    assert [tuple(one.shape) for one in found] == [(2, 5, 4, 4), (2, 2, 6, 6)]
    for one, student, layer in zip(found, students, regressors.taps, strict=True):
        torch.testing.assert_close(
            one, F.linear(student.movedim(1, -1), layer.weight[:, :, 0, 0], layer.bias).movedim(-1, 1)
        )
    with pytest.raises(ValueError, match="shorter"):
        regressors(students[:1])
