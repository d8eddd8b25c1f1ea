"""What travels inside every student folder. Imports torch and diffusers only."""

import diffusers

from . import modeling_red_unet

# A student folder of this very code opens in diffusers by the class here: its copy is not run, and needs no trust.
setattr(diffusers.pipelines, modeling_red_unet.CODE_NAME, modeling_red_unet)
