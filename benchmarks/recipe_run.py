"""One run of ``recipes.py``, in a process of its own: train a student, then measure it. Not to be called by hand.

The one argument is a :class:`Job` as JSON. The folder gets ``result.json``; a mistake is one line on standard error.
"""

import json
import os
import shutil
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddpm_redistill import ClassificationConfig, DistillConfig, LossConfig, StudentConfig, TrainingConfig, UserError
from ddpm_redistill.cli.verbs import quiet_libraries
from ddpm_redistill.files import read_metrics, write_aside

SAMPLING = {"scheduler": "ddim", "seed": 0, "batch_size": 64}
"""The same for every network: image k of each starts from the same noise, and the data are the same images."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """``model``, in ``folder``, against ``num_images`` of ``data``; trained by ``config`` first, if there is one."""

    folder: str
    model: str
    data: str
    num_images: int
    sampling_steps: int
    config: dict[str, Any] | None = None

    @classmethod
    def training(cls, config: DistillConfig, data: str, num_images: int, sampling_steps: int) -> "Job":
        folder, model = config.output_dir, str(Path(config.output_dir) / "student")
        settings = {"num_images": num_images, "sampling_steps": sampling_steps}
        return cls(folder=folder, model=model, data=data, config=asdict(config), **settings)

    def result(self) -> dict[str, Any] | None:
        """What an earlier call found, if it measured as this one would."""
        path = Path(self.folder) / "result.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        return found if all(found.get(key) == value for key, value in self.measure().items()) else None

    def measure(self) -> dict[str, Any]:
        return {
            **({} if self.config else {"model": self.model}),  # a student is known by its folder
            "data": self.data,
            "num_images": self.num_images,
            "num_inference_steps": self.sampling_steps,
            "sampling": SAMPLING,
        }


def run(job: Job) -> None:
    """Write ``result.json``. A student that is there already is only measured; a training that was cut off goes on."""
    quiet_libraries()
    folder, found = Path(job.folder), job.measure()
    if job.config is not None:
        if not Path(job.model).exists():
            train(job.config, resume=(folder / "config.yaml").exists())
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # hundreds of runs are many gigabytes
        found |= training_time(folder, job.config["training"])
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / "result.json", json.dumps({**found, "distances": distances(job)}, indent=2))


def train(settings: dict[str, Any], *, resume: bool) -> None:
    from ddpm_redistill import distill

    nested = {"student": StudentConfig, "loss": LossConfig, "training": TrainingConfig}
    nested["classification"] = ClassificationConfig
    distill(
        DistillConfig(**{**settings, **{key: kind(**settings[key]) for key, kind in nested.items()}}), resume=resume
    )


def training_time(folder: Path, training: dict[str, Any]) -> dict[str, float]:
    """Speed of the training loop by the run's last row of metrics, an average by the wall clock without the start of
    the process, and the seconds that all steps take at it. Of a resumed run it is the speed since the last resume."""
    speed = read_metrics(folder / "metrics.jsonl")[-1]["images_per_second"]
    return {"images_per_second": speed, "seconds": training["steps"] * training["batch_size"] / speed}


def distances(job: Job) -> dict[str, float]:
    """Frechet distance, KID, precision and recall of the model to the data, at equal n."""
    from ddpm_redistill.evaluation.extractors import choose_extractor
    from ddpm_redistill.evaluation.feature_cache import cached_features
    from ddpm_redistill.evaluation.metrics import extract_features, frechet_distance, kid_and_precision
    from ddpm_redistill.evaluation.reference import reference_images
    from ddpm_redistill.evaluation.sampling import open_for_sampling, sample_images

    pipeline = open_for_sampling(job.model, SAMPLING["scheduler"])
    config, extractor, seed = pipeline.unet.config, choose_extractor(), SAMPLING["seed"]
    shape = {"image_size": config.sample_size, "channels": config.in_channels}
    data = cached_features(reference_images(job.data, **shape, num_images=job.num_images, seed=seed), extractor)
    samples = sample_images(
        pipeline,
        num_images=job.num_images,
        num_inference_steps=job.sampling_steps,
        batch_size=SAMPLING["batch_size"],
        seed=seed,
    )
    features = extract_features(samples.images, extractor)
    figures = kid_and_precision(features, data)
    wanted = (extractor.kid_name, f"{extractor.kid_name}_std", "precision", "recall")
    found = {key: figures[key] for key in wanted if key in figures}
    return {extractor.fid_name: frechet_distance(features, data), **found}


def end_with_parent() -> None:
    """Standard input is a pipe that the harness holds: it closes when the harness ends, however it is killed."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    try:
        run(Job(**json.loads(sys.argv[1])))
    except (UserError, OSError) as mistake:
        sys.exit("\n" + " ".join(str(mistake).split()))  # a progress bar may stand on the line
