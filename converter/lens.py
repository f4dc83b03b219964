"""Lens, the text-to-image model: transformer, text encoder and pipeline.

    import torch
    from converter.lens import LensPipeline

    pipe = LensPipeline.from_pretrained("Lens-uint4", torch_dtype=torch.bfloat16)
    image = pipe("a red cube on a wooden table", base_resolution=1024, aspect_ratio="1:1").images[0]

Weights and configs are those of microsoft/Lens, or of a release that lensconv made from them. Importing this module
registers the classes with diffusers and transformers, so that ``DiffusionPipeline.from_pretrained`` finds them, too.
"""

from __future__ import annotations

from converter.models.lens.pipeline import LensPipeline as LensPipeline
from converter.models.lens.pipeline import LensPipelineOutput as LensPipelineOutput
from converter.models.lens.registration import register as _register
from converter.models.lens.text_encoder import LensGptOssEncoder as LensGptOssEncoder
from converter.models.lens.transformer import LensTransformer2DModel as LensTransformer2DModel

__all__ = ["LensGptOssEncoder", "LensPipeline", "LensPipelineOutput", "LensTransformer2DModel"]

_register()
