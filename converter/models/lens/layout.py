"""The tensors of a Lens transformer, by name and shape, from its config alone and without torch.

Names, shapes and order are those of microsoft/Lens (upstream commit 5bf0f0c). ``converter.models.lens.modules`` builds
the same list from modules, and a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from converter.errors import UnsupportedCheckpoint

CLASS_NAME = "LensTransformer2DModel"
PIPELINE_CLASS_NAME = "LensPipeline"
#: Channels of the sinusoidal timestep embedding; fixed in upstream's code.
TIMESTEP_CHANNELS = 256
#: Real models have far fewer layers; a config with more could exhaust the memory.
MAXIMUM_LAYERS = 1024
#: Positions per patch side; in the config, and the same in every release.
PATCH_SIZE = 2
#: Fields of the config that names and shapes of the tensors do not show.
UNSEEN_FIELDS = ("patch_size", "axes_dims_rope", "selected_layer_index")


@dataclass(frozen=True)
class LensConfig:
    """The constructor arguments of the transformer; the defaults are those of microsoft/Lens."""

    patch_size: int = PATCH_SIZE
    in_channels: int = 128
    out_channels: int = 32
    num_layers: int = 48
    attention_head_dim: int = 64
    num_attention_heads: int = 24
    inner_dim: int = 1536
    enc_hidden_dim: int = 2880
    axes_dims_rope: tuple[int, ...] = (8, 28, 28)
    gate_mlp: bool = True
    rms_norm: bool = True
    multi_layer_encoder_feature: bool = True
    selected_layer_index: tuple[int, ...] = (5, 11, 17, 23)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str = "config.json") -> LensConfig:
        """Read the fields of a ``config.json``; unknown keys are ignored, as in diffusers.

        Args:
            config: its content.
            where: the file, for messages.

        Raises:
            UnsupportedCheckpoint: a value has the wrong type or is out of range.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name not in config:
                continue
            value, default = config[field.name], field.default
            if isinstance(default, bool):
                valid = isinstance(value, bool)
            elif isinstance(default, tuple):
                valid = isinstance(value, list) and 0 < len(value) <= 64 and all(type(item) is int for item in value)
                value = tuple(value) if valid else value
            else:
                valid = type(value) is int and 0 < value <= 1 << 20
            if not valid or (field.name == "num_layers" and value > MAXIMUM_LAYERS):
                raise UnsupportedCheckpoint(f"{where}: {field.name} is {value}, which a {CLASS_NAME} cannot have")
            values[field.name] = value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as in ``config.json``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def width(self) -> int:
        """Channels of a token; ``inner_dim`` in the config is ignored, as upstream ignores it."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_width(self) -> int:
        """Hidden channels of the SwiGLU; upstream divides floats, which matters for widths that 3 does not divide."""
        return int(self.width / 3 * 8)


def lens_tensors(config: LensConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, in the order of the state dict.

    Raises:
        UnsupportedCheckpoint: the config turns on a variant that no released checkpoint uses.
    """
    if not (config.gate_mlp and config.rms_norm and config.multi_layer_encoder_feature):
        raise UnsupportedCheckpoint(
            "config.json: gate_mlp, rms_norm and multi_layer_encoder_feature must be true, as in every Lens release"
        )
    width = config.width
    yield from _linear("time_text_embed.timestep_embedder.linear_1", width, TIMESTEP_CHANNELS)
    yield from _linear("time_text_embed.timestep_embedder.linear_2", width, width)
    features = len(config.selected_layer_index)
    for index in range(features):
        yield f"txt_norm.{index}.weight", (config.enc_hidden_dim,)
    yield from _linear("txt_in", width, config.enc_hidden_dim * features)
    yield from _linear("img_in", width, config.in_channels)
    for index in range(config.num_layers):
        yield from _block(f"transformer_blocks.{index}", config)
    yield from _linear("norm_out.linear", 2 * width, width)
    yield from _linear("proj_out", config.patch_size**2 * config.out_channels, width)


def _block(prefix: str, config: LensConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = config.width
    for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        yield f"{prefix}.attn.{norm}.weight", (config.attention_head_dim,)
    yield from _linear(f"{prefix}.attn.img_qkv", 3 * width, width)
    yield from _linear(f"{prefix}.attn.txt_qkv", 3 * width, width)
    yield from _linear(f"{prefix}.attn.to_out.0", width, width)
    yield from _linear(f"{prefix}.attn.to_add_out", width, width)
    for stream in ("img", "txt"):
        yield from _linear(f"{prefix}.{stream}_mod.1", 6 * width, width)
        yield f"{prefix}.{stream}_norm1.weight", (width,)
        yield f"{prefix}.{stream}_norm2.weight", (width,)
        yield f"{prefix}.{stream}_mlp.w1.weight", (config.mlp_width, width)
        yield f"{prefix}.{stream}_mlp.w2.weight", (width, config.mlp_width)
        yield f"{prefix}.{stream}_mlp.w3.weight", (config.mlp_width, width)


def _linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> LensConfig | None:
    """The config of a checkpoint that has none, from the shapes of its tensors.

    Single files of the released model have its tensor names and no config. The shapes do not show the
    ``UNSEEN_FIELDS``, which are assumed to be the released ones; so only a model with the released head size and
    number of features is recognised.

    Returns:
        None when the tensors are not those of a Lens transformer.
    """
    default = LensConfig()
    try:
        (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
        width, in_channels = shapes["img_in.weight"]
        out_rows, _ = shapes["proj_out.weight"]
        (encoder,) = shapes["txt_norm.0.weight"]
    except (KeyError, ValueError):
        return None
    layers = {int(match[1]) for name in shapes if (match := re.match(r"transformer_blocks\.(\d{1,4})\.", name))}
    features = sum(1 for name in shapes if re.fullmatch(r"txt_norm\.\d+\.weight", name))
    if head != default.attention_head_dim or features != len(default.selected_layer_index) or width % head:
        return None
    config = LensConfig(
        in_channels=in_channels,
        out_channels=out_rows // PATCH_SIZE**2,
        num_layers=len(layers),
        attention_head_dim=head,
        num_attention_heads=width // head,
        inner_dim=width,
        enc_hidden_dim=encoder,
    )
    return config if dict(lens_tensors(config)) == dict(shapes) else None


def lens_family(name: str) -> str | None:
    """The family of a tensor of a Lens transformer; None when the name is not one of its names.

    Families are ``img_mod``, ``txt_mod``, ``attn``, ``img_mlp``, ``txt_mlp``, ``norm`` and ``embed``: the layers for
    inputs, outputs and the timestep.
    """
    match = re.fullmatch(r"transformer_blocks\.\d+\.(\w+)\.(.+)", name)
    if match is None:
        top = name.partition(".")[0]
        if top == "txt_norm":
            return "norm"
        return "embed" if top in ("time_text_embed", "txt_in", "img_in", "norm_out", "proj_out") else None
    part, rest = match.groups()
    if part in ("img_mod", "txt_mod", "img_mlp", "txt_mlp"):
        return part
    if part == "attn":
        return "norm" if rest.startswith("norm_") else "attn"
    return "norm" if re.fullmatch(r"(img|txt)_norm[12]", part) else None
