"""Losses and figures of classifiers against independent computations."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from ddpm_redistill.core.accuracy import correct_in_top, wilson_interval
from ddpm_redistill.core.logit_losses import cross_entropy, logit_distillation
from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.accuracy import accuracy_figures, agreement, classifier_figures
from ddpm_redistill.evaluation.pages.charts import loss_curves
from ddpm_redistill.evaluation.pages.confusion import confusion_picture

NAMES = [f"class {i}" for i in range(7)]


def made(seed: int = 0, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (count,), generator=torch.Generator().manual_seed(9))  # of class 6 there is none
    return torch.randn(count, 7, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 7), labels


# --- losses


def test_cross_entropy_by_hand():
    logits, labels = made()
    table = logits.double().numpy()
    shares = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    expected = -np.log(shares[np.arange(200), labels]).mean()
    assert float(cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-6)
    assert cross_entropy(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logit_distillation_by_hand(temperature):
    student, teacher = made(1)[0].requires_grad_(True), made(2)[0]
    found = logit_distillation(student, teacher, temperature)
    soft = []
    for logits in (student, teacher):
        table = logits.detach().double().numpy() / temperature
        soft.append(np.exp(table) / np.exp(table).sum(1, keepdims=True))
    ours, theirs = soft
    expected = temperature**2 * (theirs * np.log(theirs / ours)).sum(1).mean()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    # Hinton et al., eq. 2: the gradient is T times the difference of the soft targets.
    found.backward()
    np.testing.assert_allclose(student.grad.numpy(), temperature * (ours - theirs) / 200, rtol=1e-4, atol=1e-8)
    assert float(logit_distillation(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)


# --- figures


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_the_top_k_are_scikit_learns(k):
    logits, labels = made()
    expected = top_k_accuracy_score(labels, logits, k=k, labels=range(7)) if k < 7 else 1.0
    assert float(correct_in_top(logits, labels, k).double().mean()) == pytest.approx(expected)


def test_of_equal_logits_the_first_class_is_said_and_nan_is_wrong():
    logits, labels = torch.zeros(3, 3), torch.arange(3)
    assert correct_in_top(logits, labels, 1).tolist() == (logits.argmax(1) == labels).tolist() == [True, False, False]
    assert correct_in_top(logits, labels, 2).tolist() == [True, True, False]
    assert not correct_in_top(torch.full((3, 3), math.nan), labels, 3).any()


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (7, 10), (863, 1000), (1, 1), (0, 1)])
def test_wilsons_interval_is_scipys(right, count):
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_figures_of_a_classifier():
    logits, labels = made()
    found = classifier_figures(logits, labels, NAMES)
    said = logits.argmax(1)
    assert found["confusion"] == confusion_matrix(labels, said, labels=range(7)).tolist()
    right = int((said == labels).sum())
    assert (found["top1"], found["top1_interval"]) == (right / 200, list(wilson_interval(right, 200)))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    assert [row["name"] for row in found["by_class"]] == NAMES
    assert sum(row["num_images"] for row in found["by_class"]) == 200
    assert found["by_class"][6] == {"name": "class 6", "num_images": 0}
    for label, row in enumerate(found["by_class"][:6]):
        assert row["top1"] == pytest.approx(float((said[labels == label] == label).double().mean()))
        assert row["top1_interval"][0] < row["top1"] < row["top1_interval"][1]
    assert "top5" not in classifier_figures(logits[:, :5], labels.clamp(max=4), NAMES[:5])


def test_two_classifiers_agree_where_both_say_the_same():
    (one, labels), (other, _) = made(0), made(1)
    found = accuracy_figures({"student": one, "teacher": other}, labels, NAMES)
    assert (found["num_images"], found["classes"], list(found["networks"])) == (200, NAMES, ["student", "teacher"])
    assert found["networks"]["teacher"] == classifier_figures(other, labels, NAMES)
    (pair,) = found["agreements"]
    same = int((one.argmax(1) == other.argmax(1)).sum())
    assert 0 < same < 200
    assert pair == {
        "pair": ["student", "teacher"],
        "agreement": same / 200,
        "agreement_interval": list(wilson_interval(same, 200)),
    }
    assert agreement(one, one + 5)["agreement"] == 1


def test_other_numbers_of_classes_are_refused():
    logits, labels = made()
    with pytest.raises(UserError, match="student tells 7 classes apart, and the images have 6: as many are needed"):
        accuracy_figures({"student": logits}, labels, NAMES[:6])
    with pytest.raises(UserError, match="classifiers of 7 and 6 classes cannot be compared"):
        agreement(logits, logits[:, :6])


# --- pictures


@pytest.mark.parametrize(("size", "name"), [(3, "$x^$"), (10, "a class with a rather long name"), (120, "n")])
def test_the_picture_of_a_confusion(size, name):
    counts = torch.eye(size, dtype=torch.int64) * 9
    counts[0, 1] = 40
    picture = Image.open(io.BytesIO(confusion_picture(counts.tolist(), [f"{name}{i}" for i in range(size)])))
    picture.load()
    assert picture.format == "PNG"
    colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    dark = (np.abs(colours.astype(int) - (15, 102, 107)).sum(1) < 12).mean()
    assert dark > 0.5 / size**1.2 * 0.5  # about one cell in each row


def test_accuracies_are_no_losses_of_a_chart():
    rows = [{"step": step, "loss": 1.0 / step, "held_out_top1": 0.5} for step in (1, 2, 3)]
    without = [{key: value for key, value in row.items() if key != "held_out_top1"} for row in rows]
    assert loss_curves(rows) == loss_curves(without)
