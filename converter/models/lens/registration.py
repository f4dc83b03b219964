"""Makes Lens known to diffusers and transformers, which look classes up by name on their own modules.

``model_index.json`` of microsoft/Lens names its classes as if the two libraries had them, so they are set there. Should
diffusers ship its own Lens one day, its transformer stays in place if it computes what upstream's code computes, and
its pipeline with it.
"""

from __future__ import annotations

import sys

import diffusers

from converter.models.lens.golden import passes_golden_test
from converter.models.lens.pipeline import LensPipeline
from converter.models.lens.text_encoder import LensGptOssEncoder
from converter.models.lens.transformer import LensTransformer2DModel


def register() -> None:
    """Set the classes on the modules ``diffusers`` and ``transformers``."""
    theirs = getattr(diffusers, LensTransformer2DModel.__name__, LensTransformer2DModel)
    if theirs is LensTransformer2DModel or not passes_golden_test(theirs):
        diffusers.LensTransformer2DModel = LensTransformer2DModel
        diffusers.LensPipeline = LensPipeline
    elif not hasattr(diffusers, LensPipeline.__name__):
        diffusers.LensPipeline = LensPipeline
    # transformers replaces its own module while a submodule is first imported; what counts is the one that stays.
    transformers = sys.modules["transformers"]
    if not hasattr(transformers, LensGptOssEncoder.__name__):
        transformers.LensGptOssEncoder = LensGptOssEncoder  # type: ignore[attr-defined]
