"""Register Lens with diffusers and transformers, which look up classes by name on their own modules.

``model_index.json`` of microsoft/Lens names its classes as if they were part of the two libraries, so they are set
there. If diffusers has its own Lens one day, its transformer and its pipeline are kept, provided that the transformer
computes what upstream's code computes.
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
    # transformers replaces its own module during the first import of a submodule; the one in sys.modules counts.
    transformers = sys.modules["transformers"]
    if not hasattr(transformers, LensGptOssEncoder.__name__):
        transformers.LensGptOssEncoder = LensGptOssEncoder  # type: ignore[attr-defined]
