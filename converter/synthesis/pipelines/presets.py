"""All tiny pipelines by their preset."""

from __future__ import annotations

from converter.synthesis.pipelines.flux import FLUX, FLUX2
from converter.synthesis.pipelines.qwen import QWEN_IMAGE, Z_IMAGE
from converter.synthesis.pipelines.sana import SANA
from converter.synthesis.pipelines.stable_diffusion import SD3, SDXL
from converter.synthesis.pipelines.wan import WAN

PIPELINES = {
    "tiny-sdxl": SDXL,
    "tiny-sd3": SD3,
    "tiny-flux": FLUX,
    "tiny-flux2": FLUX2,
    "tiny-qwen-image": QWEN_IMAGE,
    "tiny-z-image": Z_IMAGE,
    "tiny-sana": SANA,
    "tiny-wan": WAN,
}
