"""The files of a pipeline that are not weights."""

from __future__ import annotations

from typing import Any

from converter.checkpoint.dtypes import TORCH_NAMES
from converter.checkpoint.source import PIPELINE_INDEX
from converter.conversion.release.manifest import encode_json
from converter.synthesis.pipelines.description import Model, Pipeline
from converter.synthesis.tiny import tokenizer_files

#: The version of diffusers that the configs are written for.
DIFFUSERS_VERSION = "0.41.0"
SCHEDULER = "scheduler"


def model_config(model: Model) -> dict[str, Any]:
    """Content of a component's ``config.json``.

    Raises:
        DependencyError: its library cannot be imported.
        MemoryLimitError: there is too little memory for it.
    """
    if not model.kind.is_transformers:
        return {"_class_name": model.kind.class_name, "_diffusers_version": DIFFUSERS_VERSION, **model.config}
    return {
        "architectures": [model.kind.class_name],
        "dtype": TORCH_NAMES[model.dtype],
        "model_type": model.kind.find_class().config_class.model_type,
        **model.config,
    }


def pipeline_files(pipeline: Pipeline) -> dict[str, bytes]:
    """All files of a pipeline except weights and the configs next to them, by path.

    Raises:
        DependencyError: the library of the tokenizers cannot be imported.
        MemoryLimitError: there is too little memory for it.
    """
    versions = {"_diffusers_version": DIFFUSERS_VERSION}
    index: dict[str, Any] = {"_class_name": pipeline.class_name, **versions, **pipeline.settings}
    index |= {model.name: [model.kind.library, model.kind.class_name] for model in pipeline.models}
    index |= {tokenizer.name: ["transformers", tokenizer.class_name] for tokenizer in pipeline.tokenizers}
    index[SCHEDULER] = ["diffusers", pipeline.scheduler]
    scheduler = {"_class_name": pipeline.scheduler, **versions, **pipeline.scheduler_config}
    files = {PIPELINE_INDEX: encode_json(index), f"{SCHEDULER}/scheduler_config.json": encode_json(scheduler)}
    for tokenizer in pipeline.tokenizers:
        files |= tokenizer_files(tokenizer.build(), tokenizer.name)
    return files
