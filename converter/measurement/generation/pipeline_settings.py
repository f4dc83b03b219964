"""The settings of an image that a pipeline of diffusers makes: what is not chosen is the pipeline's own default."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from converter.errors import UsageError
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.settings import refuse_undecodable
from converter.models.pipeline_calls import PipelineCall
from converter.models.pipelines import Pipeline

#: Options that are for Lens, whose default means that they were not given.
_LENS_OPTIONS = ("base_resolution", "aspect_ratio", "int8", "features", "date")


@dataclass(frozen=True)
class PipelineSettings:
    """Everything that an image depends on, except the weights and the machine."""

    pipeline: str
    """Name of the pipeline's class."""
    prompt: str
    negative_prompt: str
    seed: int
    steps: int | None
    """None if the pipeline takes no number of steps, or has no default for it; likewise the next ones."""
    guidance: float | None
    max_sequence_length: int | None
    """Most tokens of the prompt that a text encoder of unlimited length is given."""
    height: int | None
    """Height in pixels, as it was asked for; None for the pipeline's own."""
    width: int | None
    dtype: str
    compile: str
    """What is compiled, as in ``GenerateOptions``."""

    @property
    def compiles(self) -> bool:
        """Whether the blocks of the denoisers are compiled."""
        return self.compile == "blocks"

    def call_arguments(self, call: PipelineCall) -> dict[str, Any]:
        """The arguments of the pipeline's call; what it takes no account of, and its own defaults, are left out."""
        found: dict[str, Any] = {
            "prompt": self.prompt,
            # The noise is made on the CPU, so that a seed means the same on every device.
            "generator": torch.Generator("cpu").manual_seed(self.seed),
            "num_inference_steps": self.steps,
            "max_sequence_length": self.max_sequence_length,
            "height": self.height,
            "width": self.width,
            call.guidance: self.guidance,
        }
        guides = call.needs_negative and self.guidance is not None and self.guidance > 1
        if self.negative_prompt or guides:
            found["negative_prompt"] = self.negative_prompt
        return {name: value for name, value in found.items() if value is not None and call.takes(name)}

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    def to_evidence(self) -> dict[str, Any]:
        """Return what files of measurements say of the settings that all prompts share."""
        found = {
            "pipeline": self.pipeline,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "max_sequence_length": self.max_sequence_length,
            "height": self.height,
            "width": self.width,
            "dtype": self.dtype,
            "compile": self.compile,
            "negative_prompt": self.negative_prompt,
        }
        # The size is that of the images, if it was not chosen.
        return {name: value for name, value in found.items() if value is not None or name not in ("height", "width")}


def choose_pipeline_settings(pipeline: Pipeline, prompt: str, options: GenerateOptions) -> PipelineSettings:
    """Fill in what the caller did not choose with the defaults of the pipeline's call.

    Raises:
        UsageError: an option is for Lens, or the pipeline does not take it.
    """
    call, name = pipeline.call, pipeline.class_name
    refuse_undecodable(prompt, options.negative_prompt)
    _refuse_options_of_lens(name, options)
    if (options.height is None) != (options.width is None):
        raise UsageError("give --height and --width together")
    for option, value, parameter in (
        ("steps", options.steps, "num_inference_steps"),
        ("guidance", options.guidance, call.guidance),
        ("height", options.height, "height"),
        ("width", options.width, "width"),
        ("max-sequence-length", options.max_sequence_length, "max_sequence_length"),
        ("negative-prompt", options.negative_prompt or None, "negative_prompt"),
    ):
        if value is not None and not call.takes(parameter):
            raise UsageError(f"--{option}: {name} does not take it")
    if options.negative_prompt and call.ignores_negative:
        reason = f"{name} ignores it, as its true_cfg_scale is {call.default('true_cfg_scale'):g}"
        raise UsageError(f"--negative-prompt: {reason}")
    if options.compile == "blocks":
        _refuse_to_compile(pipeline)
    guidance = call.default(call.guidance) if options.guidance is None else options.guidance
    return PipelineSettings(
        pipeline=name,
        prompt=prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
        steps=call.default("num_inference_steps") if options.steps is None else options.steps,
        guidance=None if guidance is None else float(guidance),
        max_sequence_length=options.max_sequence_length or call.default("max_sequence_length"),
        height=options.height,
        width=options.width,
        dtype=options.dtype,
        compile=options.compile,
    )


def _refuse_options_of_lens(name: str, options: GenerateOptions) -> None:
    for item in fields(options):
        if item.name in _LENS_OPTIONS and getattr(options, item.name) != item.default:
            option = item.name.replace("_", "-")
            raise UsageError(f"--{option}: is for Lens only; {name} does not take it")


def _refuse_to_compile(pipeline: Pipeline) -> None:
    for component in pipeline.having("denoiser"):
        if not getattr(component.loaded_class, "_repeated_blocks", None):
            reason = f"{component.class_name} does not say which of its blocks repeat"
            raise UsageError(f"--compile blocks: {reason}", "Use --compile none.")
