"""Every setting, as frozen dataclasses. Imports no torch: help stays fast."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from .errors import UserError
from .units import parse_bytes

PredictionType = Literal["epsilon", "v_prediction", "sample"]

MOST_CHANNELS = 8
"""Of images."""

# The loss terms, each with a weight of this name in LossConfig; the second group compares feature maps at RED blocks.
FEATURE_TERMS = ("red", "feature", "fitnet", "attention_norm", "attention_mean_square", "similarity")
LOSS_TERMS = ("task", "output", *FEATURE_TERMS)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """What is changed to make the student. None: as the recipe says.

    Args:
        reduction: how many times smaller the student's feature maps are than its teacher's, a side; 2 where no recipe
            says otherwise. 1, of a student with cheap convolutions, keeps them as large.
        red_placement: full (around the stem, the head and every strided sampler), outer (stem and head) or none.
        red_norm: normalisation inside RED blocks.
        red_start: paper (default initialisation) or identity (each block starts close to y = x); of blocks that the
            teacher, a student itself, has not.
        start: teacher (warm start: its weights wherever shapes allow) or random.
        head_start: of a warm start's last layer, teacher or zero (its output means something else where the student
            predicts another quantity).
        prediction_type: what the student's network predicts; losses are taken in epsilon all the same.
        widen: for each level, the finest first, how many times as many channels as the teacher has there, as
            [1, 1, 2, 2]; None is 1 everywhere.
        architecture: of a classifier's student that is not made of its teacher's layers, a vision transformer of timm,
            timm:NAME. It starts from random weights, and its tokens are aligned with a map of the teacher.
        arguments: of that network, as timm.create_model takes them: patch_size, embed_dim, depth, num_heads.
        align_after: of that network, the block behind which its tokens are aligned, the first is 1; None is the one
            in the middle.
        cheap: what stands for the 3x3 convolutions of the residual blocks: S (themselves), DConv, DConvG8, DConvA4,
            ConvB2, G8B2, A4B2, DConvB4, Conv2x2; one for all, or one for each level, as [S, S, G8B2, G8B2].
        cheap_norm: normalisation inside them, batch (with ReLU) or group (with SiLU); None is batch in classifiers and
            group in UNets.
    """

    reduction: Literal[1, 2, 4, 8] | None = None
    red_placement: Literal["full", "outer", "none"] | None = None
    red_norm: Literal["batch", "group"] | None = None
    red_start: Literal["paper", "identity"] | None = None
    start: Literal["teacher", "random"] | None = None
    head_start: Literal["teacher", "zero"] | None = None
    prediction_type: PredictionType | None = None
    widen: list[int] | None = None
    architecture: str | None = None
    arguments: dict[str, Any] | None = None
    align_after: int | None = None
    cheap: list[str] | str | None = None
    cheap_norm: Literal["batch", "group"] | None = None


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms. None: as the recipe says, which is 0 for most.

    The teacher is run as far as they need: not at all for task alone, without output to the last map that is compared.

    Args:
        task: weight of the noise-prediction loss, MSE(epsilon, noise), of a classifier of the cross-entropy.
        output: weight of MSE(epsilon, teacher's epsilon), of a classifier of the distillation of logits.
        temperature: of a classifier, that softens the logits in output.
        guidance: of a class-conditional teacher with a null class, take its output under classifier-free guidance of
            this scale (1 is none), two passes of the teacher, for the student to learn in one. Then output is 1 and
            task 0 where nothing else is said, since images are of no guidance.
        red: weight (the paper's alpha) of the RED alignment loss; it and all to similarity compare feature maps, where
            feature_places says.
        red_distance: distance between channel-averaged maps, mse or cosine.
        feature: weight of the MSE of whole maps, where the channel counts of student and teacher agree.
        fitnet: weight of that MSE after a trained 1x1 convolution from the student's channels to the teacher's.
        attention_norm: weight of attention transfer, the paper's L2 norm of the difference.
        attention_mean_square: weight of attention transfer, the mean square of the difference of its authors' code.
        similarity: weight of similarity-preserving distillation (which images of a micro-batch are alike).
        weighting: of task and output errors over timesteps, by signal-to-noise ratio; in terms of the error in x_0:
            none (SNR, plain epsilon), min_snr (min(SNR, gamma)) or snr_plus_one (min(SNR + 1, gamma) / gamma).
        gamma: where the weighting is cut off.
        clip_sample: in task and output, count no error where the prediction of x_0 is past the range that the
            teacher's scheduler clips it to, and the target at that end of it; without effect if it does not clip.
        feature_places: where the terms on feature maps compare them: red, where a full placement has RED blocks, a mean
            over these places; or levels, at the end of each level's residual blocks, a sum over them, as attention
            transfer has it. None: as the recipe says, levels of a student of reduction 1.
        feature_share: the share of the steps, from the first (one at least), in which the terms on feature maps (red
            to similarity) count; after it there is no pass of the teacher for them.
    """

    task: float | None = None
    output: float | None = None
    temperature: float | None = None
    guidance: float | None = None
    red: float | None = None
    red_distance: Literal["mse", "cosine"] | None = None
    feature: float | None = None
    fitnet: float | None = None
    attention_norm: float | None = None
    attention_mean_square: float | None = None
    similarity: float | None = None
    weighting: Literal["none", "min_snr", "snr_plus_one"] | None = None
    gamma: float | None = None
    clip_sample: bool | None = None
    feature_places: Literal["red", "levels"] | None = None
    feature_share: float | None = None


BATCH_SIZE = 64
"""The default global batch, and that of ``auto``."""
CLIP_NORMS = {"adam": 0.05, "sgd": 0.0}
"""The default ``max_grad_norm`` by optimizer."""
FREE = "free"
"""As ``memory_budget``: what a GPU has."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop, the same for teach and distill. A step is an optimizer step.

    Args:
        steps: optimizer steps.
        batch_size: global batch: images per optimizer step over all processes and accumulated micro-batches. auto is
            64 with memory_budget, free where none is given.
        gradient_accumulation: micro-batches per optimizer step.
        memory_budget: choose gradient_accumulation, so that the micro-batches of each process are as large as fit into
            so much memory, as 16GiB, by the tensors of an eager step; free: into 80% of what is free on the GPU.
        optimizer: adam, or sgd with Nesterov momentum 0.9.
        learning_rate: after the warm-up; of sgd 0.1 is usual.
        weight_decay: of all that is trained, biases and BatchNorm too; of adam decoupled from its gradient (AdamW).
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        schedule: learning rate after the warm-up, constant, cosine (to 0 at the last step) or steps (at milestones).
        milestones: of the schedule steps, the shares of the steps after which the learning rate falls.
        milestone_factor: what it is multiplied by at each.
        max_grad_norm: gradients are clipped to this norm, 0 for not. auto is 0.05 of adam and 0 of sgd. Adam does not
            see their scale: so low that it nearly always clips, it keeps rare large gradients from counting more than
            others.
        ema_decay: decay of the exponential moving average that is saved and sampled; 0 for the weights themselves.
        mixed_precision: no, bf16 or fp16, through Accelerate.
        gradient_checkpointing: keep less of the student's residual blocks for the backward pass, and compute it again
            there: less memory and more time, the same numbers.
        compile: the training step by torch.compile: auto (on CUDA cudagraphs for a short run and default for a long
            one, off elsewhere), off, cudagraphs (its kernels captured as CUDA graphs: seconds to prepare), default
            (kernels fused: a minute or more), or reduce-overhead (both).
        label_dropout: of class-conditional networks, the share of images whose label is replaced by the null class,
            which classifier-free guidance needs. None: 0.1 where there is a null class and guidance is not learned,
            else 0.
        num_workers: for each process, processes that load images, where they are not held in memory.
        log_every: steps between rows of metrics.jsonl and TensorBoard.
        sample_every: steps between sample grids from fixed noise, of a classifier between its accuracies on held-out
            images; 0 for none.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints kept; 0 keeps all.
    """

    steps: int = 2000
    batch_size: int | Literal["auto"] = BATCH_SIZE
    gradient_accumulation: int = 1
    memory_budget: str | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 50
    schedule: Literal["constant", "cosine", "steps"] = "cosine"
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    milestone_factor: float = 0.1
    max_grad_norm: float | Literal["auto"] = "auto"
    ema_decay: float = 0.999
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    compile: Literal["auto", "off", "cudagraphs", "default", "reduce-overhead"] = "auto"
    label_dropout: float | None = None
    num_workers: int = 0
    log_every: int = 10
    sample_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2

    @property
    def global_batch(self) -> int:
        """``batch_size``, which is a number once this is made."""
        assert self.batch_size != "auto"
        return self.batch_size

    @property
    def clip_norm(self) -> float:
        """``max_grad_norm`` as a number, 0 for none; a run settles it once the optimizer is known."""
        return CLIP_NORMS[self.optimizer] if self.max_grad_norm == "auto" else self.max_grad_norm

    def __post_init__(self) -> None:
        if self.batch_size == "auto":
            object.__setattr__(self, "batch_size", BATCH_SIZE)
            object.__setattr__(self, "memory_budget", self.memory_budget or FREE)
        if self.memory_budget is not None:
            if self.memory_budget != FREE:
                parse_bytes(self.memory_budget)
            if self.gradient_accumulation != 1:
                raise UserError(
                    "training.gradient_accumulation is chosen by training.memory_budget (batch_size auto has one): set"
                    " one of them"
                )
        for name in ("steps", "batch_size", "gradient_accumulation", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("warmup_steps", "num_workers", "sample_every", "keep_checkpoints"):
            if getattr(self, name) < 0:
                raise UserError(f"training.{name} must be at least 0, not {getattr(self, name)}")
        for name in ("learning_rate", "milestone_factor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"training.{name} must be positive, not {getattr(self, name)}")
        for name, value in (("max_grad_norm", self.clip_norm), ("weight_decay", self.weight_decay)):
            if not 0 <= value < float("inf"):
                raise UserError(f"training.{name} must be a finite number from 0 on, not {value}")
        if not all(0 < one < other for one, other in pairwise([*self.milestones, 1.0])):
            raise UserError(f"training.milestones must rise between 0 and 1, not {self.milestones}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"training.ema_decay must be at least 0 and below 1, not {self.ema_decay}")
        if self.label_dropout is not None and not 0 <= self.label_dropout < 1:
            raise UserError(f"training.label_dropout must be at least 0 and below 1, not {self.label_dropout}")


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """What the images of a classifier are, beside its data.

    Args:
        held_out: the images that its accuracy is taken of, none of which it learns from: a share of the data, drawn by
            the seed (0 for none), or another source of images with labels, as the test set of a data set.
        crop: what is cut out of an image at random each time it is learned from: padded (the image with 4 black pixels
            around it, moved by up to 4), resized (8 to 100% of its area, at 3:4 to 4:3, made as large as the image),
            none; auto is padded below 96 pixels a side and resized from there on.
    """

    held_out: float | str = 0.1
    crop: Literal["auto", "padded", "resized", "none"] = "auto"


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One distillation.

    Args:
        teacher: a diffusers folder, a hub id, or builtin:digits.
        data: a folder of images, an .npz of uint8 NHWC images, torchvision:NAME, hub:NAME or builtin:digits.
        on_bad_image: of a folder of images, what is done about one that cannot be read, at the start or later: error
            stops; skip puts the next good one in its place, up to one image in a hundred.
        data_range: the value of the images that becomes white, as 4095 of 12-bit data in 16-bit files; none may be
            above it. None is the end of the range of the files: 255 of 8 bits, 65535 of 16, 1 of floating point.
        output_dir: the run folder; it must not hold a run yet, unless the run is resumed.
        image_size: pixels a side; None takes the teacher's sample size.
        horizontal_flip: flip half of the images left to right.
        recipe: sets what student and loss leave open. natural (ours, for photographs), saturated (ours, for images
            with many pixels at an end of the range, as digits on black), or default, the one of these two that the
            data call for; redistill or redistill_cosine (the paper's); moonshine (of Crowley et al., for a student of
            cheap convolutions, of classifiers too).
        student: what is changed to make the student.
        classification: of a classifier: what is held out of the data, and how its images are cropped.
        loss: weights of the loss terms.
        training: the loop.
        seed: of everything that is drawn.
    """

    teacher: str = "builtin:digits"
    data: str = "builtin:digits"
    on_bad_image: Literal["error", "skip"] = "error"
    data_range: float | None = None
    output_dir: str = "runs/distill"
    image_size: int | None = None
    horizontal_flip: bool = False
    recipe: Literal["default", "natural", "saturated", "redistill", "redistill_cosine", "moonshine"] = "default"
    student: StudentConfig = field(default_factory=StudentConfig)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size must be at least 1, not {self.image_size}")


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """One training of a teacher from images: a DDPM, or a classifier.

    Args:
        architecture: of a classifier: timm:NAME, any convolutional one of timm, or wrn:DEPTH-WIDTH, a wide residual
            network. It learns the classes of the data's labels. None: a DDPM is trained.
        classification: of a classifier: what is held out of the data, and how its images are cropped.
        unet: arguments of diffusers' UNet2DModel; sample_size and channels come from image_size and channels, and
            num_class_embeds from class_conditional.
        scheduler: arguments of diffusers' DDPMScheduler.
        data: a folder of images, an .npz of uint8 NHWC images, torchvision:NAME, hub:NAME or builtin:digits.
        on_bad_image: of a folder of images, what is done about one that cannot be read, at the start or later: error
            stops; skip puts the next good one in its place, up to one image in a hundred.
        data_range: the value of the images that becomes white, as 4095 of 12-bit data in 16-bit files; none may be
            above it. None is the end of the range of the files: 255 of 8 bits, 65535 of 16, 1 of floating point.
        output_dir: the run folder; it must not hold a run yet, unless the run is resumed.
        image_size: pixels a side.
        channels: of the images, 1 (grey), 3 (RGB), or what an .npz has, up to 8.
        horizontal_flip: flip half of the images left to right.
        class_conditional: learn the classes of the data's labels: one embedding for each, and a null class as the
            last, unless training.label_dropout is 0.
        start: a pretrained DDPM, or classifier, of the same network to go on from (a folder or hub id); None starts at
            random. Of a DDPM without classes a class-conditional network gets all but the class embeddings, which start
            at random, and that of the null class at zero.
        autoencoder: a folder of diffusers' VQModel or AutoencoderKL: the network learns the latents of the images, and
            image_size and channels stay those of the images. None: it learns pixels.
        training: the loop.
        seed: of everything that is drawn.
    """

    architecture: str | None = None
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    unet: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    data: str = "builtin:digits"
    on_bad_image: Literal["error", "skip"] = "error"
    data_range: float | None = None
    output_dir: str = "runs/teacher"
    image_size: int = 32
    channels: int = 1
    horizontal_flip: bool = False
    class_conditional: bool = False
    start: str | None = None
    autoencoder: str | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise UserError(f"channels must be from 1 to {MOST_CHANNELS}, not {self.channels}")
