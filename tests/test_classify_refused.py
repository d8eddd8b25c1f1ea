"""What a classifier is tried on is held out of what it learns; what is none of its runs is refused in one line."""

from typing import Any

import pytest
import torch
from classifier_helpers import (
    CLASSES,
    labelled,
    refuse,
    squares,
)

from ddpm_redistill.config import ClassificationConfig, LossConfig, TrainingConfig
from ddpm_redistill.core.taps import Tap
from ddpm_redistill.errors import UserError
from ddpm_redistill.recipes import classifier_loss
from ddpm_redistill.training.classify import check_training, labelled_images
from ddpm_redistill.training.comparison import Place, check_terms


def test_held_out_images_are_a_share_by_the_seed():
    whole, found = squares(), labelled()
    assert (len(found.images), len(found.held)) == (36, 12)
    seen = [tuple(image.flatten().tolist()) for source in (found.images, found.held) for image in source]
    assert sorted(seen) == sorted(tuple(whole[i].flatten().tolist()) for i in range(48))
    for source, labels in ((found.images, found.labels), (found.held, found.held_labels)):
        brightest = torch.stack([image.float().amax((1, 2)) for image in source]).argmax(1)
        assert torch.equal(brightest, labels)
    other = labelled_images(squares(), ClassificationConfig(held_out=0.25), 1, refuse)
    assert other.held.fingerprint != found.held.fingerprint == labelled().held.fingerprint
    assert found.images.label_fingerprint != whole.label_fingerprint
    assert labelled(0.0).held is None


def test_held_out_images_of_another_source_are_found_by_their_names():
    test = squares(20, seed=1)
    other = test.subset(torch.arange(20)).with_labels(2 - test.labels, CLASSES[::-1])
    found = labelled_images(squares(), ClassificationConfig(held_out="elsewhere"), 0, {"elsewhere": other}.__getitem__)
    assert (len(found.images), len(found.held)) == (48, 20)
    assert torch.equal(found.held_labels, test.labels)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"num_classes": 4}, "net tells 4 classes apart and names none, and .*squares.* has 3: as many are needed"),
        ({"num_classes": 2, "names": ["red", "green"]}, "class 'blue' is none of the 2 of net"),
        ({"num_classes": 3, "names": ["red", "green", "sky"]}, "class 'blue' is none of the 3 of net"),
    ],
)
def test_other_classes_are_refused(given, line):
    with pytest.raises(UserError, match=line):
        labelled_images(squares(), ClassificationConfig(), 0, refuse, ref="net", **given)


def test_names_of_the_network_give_its_numbers():
    found = labelled_images(
        squares(), ClassificationConfig(), 0, refuse, num_classes=4, names=["blue", "green", "grey", "red"], ref="net"
    )
    brightest = torch.stack([image.float().amax((1, 2)) for image in found.images]).argmax(1)
    assert torch.equal(torch.tensor([3, 1, 0])[brightest], found.labels)


def test_images_without_labels_are_refused():
    bare = squares()
    bare.labels = None
    with pytest.raises(UserError, match=r"a classifier learns labels, and .*squares.* have no labels"):
        labelled_images(bare, ClassificationConfig(), 0, refuse)
    with pytest.raises(UserError, match=r"this run has classes, and .*squares.* have no labels"):
        labelled_images(squares(), ClassificationConfig(held_out="elsewhere"), 0, lambda _: bare)


@pytest.mark.parametrize(
    ("share", "line"),
    [
        (1.0, "held_out must be a share"),
        (-0.1, "held_out must be"),
        (0.001, "none is held out"),
        (0.999, "none is left"),
    ],
)
def test_a_share_that_leaves_nothing_is_refused(share, line):
    with pytest.raises(UserError, match=line):
        labelled(share)


@pytest.mark.parametrize("name", ["guidance", "gamma", "clip_sample", "weighting"])
def test_settings_of_a_ddpms_loss_are_refused(name):
    value: Any = {"guidance": 2.0, "gamma": 5.0, "clip_sample": True, "weighting": "none"}[name]
    with pytest.raises(UserError, match=rf"loss\.{name} is set, which is of a DDPM"):
        classifier_loss(LossConfig(**{name: value}))


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        ({"temperature": 0.0}, r"loss\.temperature must be positive"),
        ({"red": -1.0}, r"loss\.red must be zero or positive"),
        ({"task": 0.0, "red": 0.0}, "all loss weights are 0"),
        ({"feature_share": 0.0}, r"loss\.feature_share must be above 0"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss, line):
    with pytest.raises(UserError, match=line):
        classifier_loss(LossConfig(**loss))


def test_settings_of_a_ddpms_training_are_refused():
    check_training(TrainingConfig())
    with pytest.raises(UserError, match=r"training\.label_dropout is set"):
        check_training(TrainingConfig(label_dropout=0.1))
    with pytest.raises(UserError, match=r"training\.gradient_checkpointing would"):
        check_training(TrainingConfig(gradient_checkpointing=True))


def test_a_feature_term_without_a_place_is_refused():
    with pytest.raises(UserError, match=r"loss\.red compares feature maps, and no map of the student has"):
        check_terms(classifier_loss(LossConfig()), [], 4)
    check_terms(classifier_loss(LossConfig(red=0.0)), [], 4)
    check_terms(classifier_loss(LossConfig()), [Place(Tap("a", "output"), Tap("b", "input"), 1, 2)], 4)
