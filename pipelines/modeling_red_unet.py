"""The student network: a ``UNet2DModel`` that down-samples at its front, with RED blocks; its config holds its plan.

It carries its own code: ``save_pretrained`` puts it beside the weights, so that diffusers can open the folder where
this package is not (docs/sharing.md).
"""

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps

# diffusers refuses a pipeline component whose module has no ModelMixin in its namespace.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from torch import nn

from .edits import Edit, Width, edit_from_dict


def travelling_code(path: Path) -> str:
    """The source of a module with those of its own folder that it imports in the place of the imports: one file,
    since the hub's client fetches no other beside it."""

    def imported(found: re.Match[str]) -> str:
        return travelling_code(path.with_name(f"{found[1]}.py"))

    return re.sub(r"^from \.(\w+) import .*\n", imported, path.read_text(encoding="utf-8"), flags=re.MULTILINE)


# Read when imported, as the code that runs is; a file of it, opened elsewhere, gives the same again.
CODE = travelling_code(Path(__file__))
# diffusers runs a folder's code from a copy in one cache, by file name: other code must have another name.
CODE_VERSION = hashlib.sha256(CODE.encode()).hexdigest()[:12]
CODE_NAME = f"modeling_red_unet_{CODE_VERSION}"


class RedUNet2DModel(UNet2DModel):
    """(B, C_in, H, W), timesteps (B,) -> (B, C_out, H, W), every feature map ``reduction`` times smaller a side.

    All arguments but the last are ``UNet2DModel``'s, with the teacher's values (``sample_size`` stays the
    image's, ``block_out_channels`` the teacher's widths). They are written out since diffusers records a config
    from the signature. In the config block names read "RedUNet2DModel.DownBlock2D", with or without which they are
    taken: ``UNet2DModel``, which would open a student with a warning and random layers, knows no such block.

    Args:
        student_plan: ``StudentPlan.to_dict()``. Its ``edits`` are read here (``edits_of``); the rest is kept so that
            the folder says how it was made.

    Raises:
        ValueError: there is no plan, or it has an edit that is none or that this network has no place for.

    The edits, and nothing else, are what distinguishes it: the stem takes stride r; the last log2(r) down-samplers and
    the mirrored up-samplers keep their convolution and lose their stride; the head makes r*r values for each position
    and lays them out as pixels; a widened level has so many times the teacher's channels, the time embedding the
    teacher's; RED blocks stand around the layers that they name.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        student_plan: dict[str, Any] | None = None,
    ):
        if not student_plan:
            raise ValueError("RedUNet2DModel needs a student_plan; a network without one is a UNet2DModel")
        edits = edits_of(student_plan, len(block_out_channels))
        widen = [1] * len(block_out_channels)
        for edit in edits:
            if isinstance(edit, Width):
                if edit.level >= len(widen):
                    raise ValueError(f"level {edit.level + 1} is to be widened, of {len(widen)}")
                widen[edit.level] = edit.factor
        down_blocks = tuple(name.split(".")[-1] for name in down_block_types)
        up_blocks = tuple(name.split(".")[-1] for name in up_block_types)
        widths = [channels * factor for channels, factor in zip(block_out_channels, widen, strict=True)]
        time_channels = time_embedding_dim or 4 * block_out_channels[0]
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            center_input_sample=center_input_sample,
            time_embedding_type=time_embedding_type,
            time_embedding_dim=time_channels,
            freq_shift=freq_shift,
            flip_sin_to_cos=flip_sin_to_cos,
            down_block_types=down_blocks,
            mid_block_type=mid_block_type,
            up_block_types=up_blocks,
            block_out_channels=tuple(widths),
            layers_per_block=layers_per_block,
            mid_block_scale_factor=mid_block_scale_factor,
            downsample_padding=downsample_padding,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
            dropout=dropout,
            act_fn=act_fn,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=attn_norm_num_groups,
            norm_eps=norm_eps,
            resnet_time_scale_shift=resnet_time_scale_shift,
            add_attention=add_attention,
            class_embed_type=class_embed_type,
            num_class_embeds=num_class_embeds,
            num_train_timesteps=num_train_timesteps,
        )
        # The line above has recorded the student's own values: a network built from them would be widened twice.
        self.register_to_config(block_out_channels=block_out_channels, time_embedding_dim=time_embedding_dim)
        self.register_to_config(
            down_block_types=tuple(f"RedUNet2DModel.{name}" for name in down_blocks),
            up_block_types=tuple(f"RedUNet2DModel.{name}" for name in up_blocks),
        )
        self.__module__ = CODE_NAME  # what a pipeline's model_index.json records as the place of this class

        # widths: the time is projected as in the teacher, since other widths would be other frequencies
        if widen[0] > 1:
            width = block_out_channels[0]
            if time_embedding_type == "learned":
                self.time_proj = nn.Embedding(num_train_timesteps, width)
            else:
                self.time_proj = Timesteps(width, flip_sin_to_cos, freq_shift)
            self.time_embedding = TimestepEmbedding(width, time_channels)
        # and where the teacher's shortcut is a projection, it is one even between levels that are now equally wide
        for i in range(1, len(widths)):
            if block_out_channels[i - 1] != block_out_channels[i] and widths[i - 1] == widths[i]:
                self.down_blocks[i].resnets[0].conv_shortcut = nn.Conv2d(widths[i], widths[i], kernel_size=1)

        for edit in edits:
            edit.apply(self)

    @functools.wraps(UNet2DModel.save_pretrained)  # a pipeline looks for `variant` and others in the signature
    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """``ModelMixin.save_pretrained``, with this class's code beside config and weights."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{CODE_NAME}.py").write_text(CODE, encoding="utf-8", newline="\n")
        super().save_pretrained(save_directory, *args, **kwargs)


def edits_of(student_plan: dict[str, Any], levels: int) -> list[Edit]:
    """The edits of a saved plan; of an older one, which has no list of them, those that its fields stood for.

    Args:
        levels: of the UNet.

    Raises:
        ValueError: naming what is wrong.
        LookupError, TypeError: an old plan lacks a field.
    """
    given = student_plan["edits"] if "edits" in student_plan else _edits_of_fields(student_plan, levels)
    if not isinstance(given, (list, tuple)):
        raise ValueError("edits is no list")
    return [edit_from_dict(edit) for edit in given]


def _edits_of_fields(plan: dict[str, Any], levels: int) -> list[dict[str, Any]]:
    """As JSON has edits, what the fields of an older plan say."""
    reduction, strided = plan["reduction"], levels - 1
    widen = plan.get("widen") or [1] * levels
    if len(widen) != levels:
        raise ValueError(f"widen has {len(widen)} factors for {levels} levels")
    edits = [{"edit": "width", "level": level, "factor": factor} for level, factor in enumerate(widen) if factor != 1]
    edits.append({"edit": "stem", "layers": ("conv_in",), "stride": reduction})
    for depth in range(reduction.bit_length() - 1):
        layers = (f"down_blocks.{strided - 1 - depth}.downsamplers.0", f"up_blocks.{depth}.upsamplers.0")
        edits.append({"edit": "stride", "layers": layers})
    edits.append({"edit": "head", "path": "conv_out", "factor": reduction})
    for block in plan["blocks"]:
        path, side = block["name"].rsplit(".", 1)
        place = {"edit": "red", "path": path, "side": side, "norm": plan["red_norm"], "start": plan["red_start"]}
        kept = ("channels", "resolution", "teacher_layer", "teacher_side", "teacher_channels")
        edits.append({**place, **{key: block[key] for key in kept}})
    return edits
