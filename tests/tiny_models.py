"""Tiny random-weight models of real classes, wide enough for SDNQ to quantize some of their modules."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from converter import Recipe, convert

_CLASSES = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
#: Constructor arguments by class.
DIFFUSERS: dict[str, dict[str, Any]] = _CLASSES["diffusers"]
#: Config class and its arguments by class.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = _CLASSES["transformers"]
ALL_CLASSES = (*DIFFUSERS, *TRANSFORMERS)
#: The file of weights that diffusers writes.
WEIGHTS = "diffusion_pytorch_model.safetensors"


def model_class(name: str) -> Any:
    """The class itself."""
    import diffusers
    import transformers

    if name == "LensTransformer2DModel":
        from converter.models.lens.modules import LensTransformer2DModel

        return LensTransformer2DModel
    return getattr(diffusers, name) if name in DIFFUSERS else getattr(transformers, name)


def build_model(name: str, **changes: Any) -> Any:
    """A model with random float32 weights, the same in every run."""
    import transformers

    torch.manual_seed(0)
    if name in DIFFUSERS:
        model = model_class(name)(**{**DIFFUSERS[name], **changes})
    else:
        config_name, arguments = TRANSFORMERS[name]
        model = model_class(name)(getattr(transformers, config_name)(**{**arguments, **changes}))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        # Constructors leave zeros and ones behind; real weights are neither.
        if parameter.is_floating_point():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.float()


def save_model(
    folder: Path, name: str, *, dtype: torch.dtype = torch.float32, shard: str = "5GB", **changes: Any
) -> Path:
    """Write such a model as its library does; returns the folder."""
    build_model(name, **changes).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def into_cache(source: Path) -> Path:
    """Move the files of a repo into blobs, as the Hub's cache keeps them; returns the snapshot, which links to them."""
    repo = source.with_name("models--a--b")
    (repo / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        link = repo / "snapshots" / "0123" / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, repo / "blobs" / f"{number}")
        link.symlink_to(os.path.relpath(repo / "blobs" / f"{number}", link.parent))
    return repo / "snapshots" / "0123"


def make_pipeline(folder: Path) -> Path:
    """A pipeline repo with a Lens transformer and two other components."""
    save_model(folder / "transformer", "LensTransformer2DModel")
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    save_file({"x": torch.ones(5)}, folder / "vae" / WEIGHTS)
    (folder / "tokenizer" / "nested").mkdir(parents=True)
    (folder / "tokenizer" / "nested" / "vocabulary.txt").write_text("words\n")
    (folder / "README.md").write_text("not a component")
    (folder / "model_index.json").write_text(
        json.dumps(
            {"_class_name": "LensPipeline", "transformer": ["diffusers", "LensTransformer2DModel"]}
            | {"vae": ["diffusers", "AutoencoderKLFlux2"]}
            | {"tokenizer": ["transformers", "PreTrainedTokenizerFast"], "safety_checker": [None, None]}
        )
    )
    return folder


def convert_default(source: Path, output: Path, recipe: Recipe | None = None) -> Path:
    """Convert with all defaults, or another recipe; returns the output."""
    convert(source, output, recipe)
    return output
