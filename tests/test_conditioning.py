"""Class-conditional networks: what is known of their classes, labels in their numbers, sampling, guidance."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel

from ddpm_redistill.config import StudentConfig
from ddpm_redistill.core.losses import epsilon_of
from ddpm_redistill.errors import UserError
from ddpm_redistill.pipelines.conditioning import Conditioning, conditioning_of, guided, labels_of
from ddpm_redistill.pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ddpm_redistill.sources.class_labels import conditioned
from ddpm_redistill.sources.image_source import ImageSource, from_tensor
from ddpm_redistill.sources.image_survey import Survey
from ddpm_redistill.sources.model_folder import find_model
from ddpm_redistill.sources.teacher import load_pipeline
from ddpm_redistill.students.derive import derive_student
from ddpm_redistill.students.footprint import network_memory, network_peak
from ddpm_redistill.students.plan import plan_student

NAMES = {"0": "cat", "1": "dog", "2": "eel"}


@pytest.fixture(scope="module")
def network(tiny_config: dict[str, Any]) -> UNet2DModel:
    """Three classes and a null class, whose embeddings matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(**tiny_config, num_class_embeds=4).eval()
    unet.class_embedding.weight.data.mul_(3)
    return unet


def pipeline_of(unet: UNet2DModel, **options: Any) -> RedDDPMPipeline:
    pipeline = RedDDPMPipeline(unet, DDPMScheduler(), id2label=NAMES, compile=False, **options).set_scheduler("ddim")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# --- what is known of the classes


def test_one_embedding_more_than_names_is_the_null_class() -> None:
    assert conditioning_of(4, NAMES) == Conditioning(("cat", "dog", "eel"), 3)
    assert conditioning_of(3, {0: "cat", 1: "dog", 2: "eel"}).null is None
    assert conditioning_of(2, None) == Conditioning(("0", "1"), None)
    assert conditioning_of(None, None) is None


@pytest.mark.parametrize(
    ("embeddings", "names"),
    [(5, NAMES), (2, NAMES), (None, NAMES), (4, {"0": "cat", "2": "eel"}), (2, {}), (3, {**NAMES, "1": 7})],
)
def test_names_of_other_embeddings_are_refused(embeddings: int | None, names: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="id2label"):
        conditioning_of(embeddings, names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "cat"}}, "id2label names 1"),
        ({"id2label": 3}, "object"),
        ({"learned_guidance": "x"}, "finite"),
    ],
)
def test_a_folder_whose_index_is_not_of_its_network_is_refused(
    network: UNet2DModel, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    pipeline_of(network).save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))
    with pytest.raises(UserError, match=message):
        find_model(str(tmp_path))


def test_no_embedding_is_no_network(network: UNet2DModel, tmp_path: Path) -> None:
    pipeline_of(network).save_pretrained(tmp_path)
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_class_embeds": 0}))
    with pytest.raises(UserError, match="num_class_embeds 0"):
        find_model(str(tmp_path))


def test_saved_and_opened_it_knows_the_same(network: UNet2DModel, tmp_path: Path) -> None:
    pipeline = pipeline_of(network, learned_guidance=1.5)
    pipeline.save_pretrained(tmp_path)
    known = Conditioning(("cat", "dog", "eel"), 3, 1.5)
    assert pipeline.conditioning == known
    assert load_pipeline(str(tmp_path)).conditioning == known
    assert RedDDPMPipeline.from_pretrained(tmp_path).conditioning == known
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is DDPMPipeline


# --- labels of images in a network's numbers


def images_of(labels: list[int], classes: list[str]) -> ImageSource:
    source = from_tensor(torch.zeros(len(labels), 1, 16, 16, dtype=torch.uint8), Survey("images", 16, {(16, 16)}))
    return source.with_labels(labels, classes)


@pytest.mark.parametrize(
    ("classes", "id2label", "expected"),
    [
        (["cat", "dog", "eel"], NAMES, [0, 2, 1]),
        (["eel", "cat", "dog"], NAMES, [2, 1, 0]),  # by name, in another order
        (["0", "1", "2"], NAMES, [0, 2, 1]),  # numbers
        (["ant", "bee", "cow"], {"0": "0", "1": "1", "2": "2"}, [0, 2, 1]),  # its names are numbers
        (["ant", "bee", "cow"], None, [0, 2, 1]),
    ],
)
def test_labels_find_their_embeddings(classes: list[str], id2label: dict[str, str] | None, expected: list[int]) -> None:
    labels, conditioning = conditioned(images_of([0, 2, 1], classes), 4, id2label, "teacher")
    assert labels.tolist() == expected
    assert conditioning.null == 3
    assert conditioning.names == (tuple(id2label.values()) if id2label else tuple(classes))


@pytest.mark.parametrize(
    ("classes", "embeddings", "id2label", "message"),
    [
        (["cat", "dog", "fox"], 4, NAMES, "class 'fox' is none of the 3 of teacher"),
        (["0", "1", "2", "3"], 4, NAMES, "class '0' is none of the 3"),
        (["a", "b"], 4, None, "has 4 class embeddings and names no classes"),
        (["a", "b"], 4, {"0": "0", "1": "1", "2": "2"}, "class 'a' is none"),
    ],
)
def test_other_classes_are_refused(
    classes: list[str], embeddings: int, id2label: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        conditioned(images_of([0, 1], classes), embeddings, id2label, "teacher")


# --- sampling


def test_image_k_has_label_k_mod_k_whatever_the_batches(network: UNet2DModel) -> None:
    pipeline = pipeline_of(network)
    whole = pipeline(7, num_inference_steps=3, batch_size=7, output_type="pt").images
    parts = pipeline(7, num_inference_steps=3, batch_size=2, output_type="pt").images
    assert torch.allclose(whole, parts, atol=1e-5)
    for label in range(3):
        alone = pipeline(7, num_inference_steps=3, output_type="pt", class_labels=label).images
        assert torch.allclose(alone[label::3], whole[label::3], atol=1e-5)
        assert not torch.allclose(alone[(label + 1) % 3 :: 3], whole[(label + 1) % 3 :: 3], atol=1e-2)
    assert labels_of(range(5, 9), (4, 7), torch.device("cpu")).tolist() == [7, 4, 7, 4]


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_guidance_is_the_same_in_whatever_a_network_predicts(prediction_type: str) -> None:
    """What is combined and then brought to epsilon is what is brought to epsilon and then combined."""
    generator = torch.Generator().manual_seed(0)
    noisy, conditional, null = torch.randn(3, 4, 1, 8, 8, generator=generator)
    abar = DDPMScheduler().alphas_cumprod[torch.tensor([3, 200, 600, 999])]

    def epsilon(prediction: torch.Tensor) -> torch.Tensor:
        return epsilon_of(prediction, noisy, abar, prediction_type)

    expected = epsilon(null) + 2.5 * (epsilon(conditional) - epsilon(null))
    combined = epsilon(guided(torch.cat([conditional, null]), 2.5))
    assert torch.allclose(combined, expected, rtol=1e-4, atol=1e-3)


def test_sampling_with_guidance_uses_both_passes(network: UNet2DModel) -> None:
    """Guidance 0 is the null class, 1 the label, and between them neither."""
    pipeline = pipeline_of(network)

    def sample(**how: Any) -> torch.Tensor:
        return pipeline(4, num_inference_steps=2, output_type="pt", **how).images

    plain = sample(class_labels=2)
    assert torch.equal(sample(class_labels=2, guidance_scale=1.0), plain)
    null = sample(class_labels=2, guidance_scale=0.0)
    assert torch.allclose(null, sample(class_labels=0, guidance_scale=0.0), atol=1e-5)
    assert not torch.allclose(null, plain, atol=1e-2)
    assert not torch.allclose(sample(class_labels=2, guidance_scale=3.0), plain, atol=1e-2)
    lean = RedDDPMPipeline(network, DDPMScheduler(), id2label=NAMES, lean="smallest").set_scheduler("ddim")
    lean.set_progress_bar_config(disable=True)
    again = lean(4, num_inference_steps=2, output_type="pt", class_labels=2, guidance_scale=3.0).images
    assert torch.allclose(again, sample(class_labels=2, guidance_scale=3.0), atol=1e-4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"class_labels": 3}, "label 3 is none of this model's 3 classes"),
        ({"class_labels": [0, -1]}, "label -1 is none"),
        ({"class_labels": []}, "no label is given"),
        ({"guidance_scale": float("nan")}, "finite number"),
        ({"guidance_scale": -1.0}, "finite number"),
    ],
)
def test_labels_and_guidance_that_cannot_be(network: UNet2DModel, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline_of(network)(1, num_inference_steps=1, **how)


def test_learned_guidance_is_one_pass_and_no_other(network: UNet2DModel) -> None:
    pipeline = pipeline_of(network, learned_guidance=1.5)
    assert pipeline.check_classes(None, 1.5) == ((0, 1, 2), False)
    with pytest.raises(ValueError, match=r"has learned guidance 1.5.*leave guidance out, not 2"):
        pipeline.check_classes(None, 2.0)


def test_no_null_class_no_guidance(network: UNet2DModel) -> None:
    pipeline = RedDDPMPipeline(network, DDPMScheduler())  # names no classes: all four are some
    assert pipeline.check_classes() == ((0, 1, 2, 3), False)
    with pytest.raises(ValueError, match="needs a null class"):
        pipeline.check_classes(None, 1.5)


# --- students


def test_a_student_has_its_teachers_classes(network: UNet2DModel) -> None:
    student = derive_student(network, plan_student(dict(network.config)))
    assert torch.equal(student.class_embedding.weight, network.class_embedding.weight)
    x, t, labels = torch.randn(3, 1, 16, 16), torch.tensor([5, 500, 900]), torch.tensor([0, 3, 1])
    narrow = derive_student(network, plan_student(dict(network.config), StudentConfig(head_start="teacher")))
    wide = derive_student(
        network, plan_student(dict(network.config), StudentConfig(head_start="teacher", widen=[2, 2, 2, 2]))
    )
    with torch.no_grad():
        assert torch.allclose(wide(x, t, labels).sample, narrow(x, t, labels).sample, atol=1e-4)


def test_memory_is_that_of_a_pass_with_labels(network: UNet2DModel, tiny_config: dict[str, Any]) -> None:
    """The embedding adds its rows to the weights, and a sum of two vectors to what is alive."""
    without = network_memory(UNet2DModel(**tiny_config).eval())
    found = network_memory(network)
    assert found.weights - without.weights == 4 * 4 * tiny_config["block_out_channels"][0] * 4
    assert network_peak(network) == (found.tensor_peak, True)
    assert 0 <= found.tensor_peak - without.tensor_peak <= 8 * 4 * tiny_config["block_out_channels"][0] * 4
