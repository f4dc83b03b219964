"""Models with outliers where a recipe may quantize, which show that an evaluation sees harm. They draw as before.

``plant_outliers``: one input channel of every image modulation is made silent: the channel of the timestep's embedding
that all of them read becomes zero. Its weights are then free, and become large. A group of weights that are quantized
together with these has a scale that leaves little of the others.

``plant_attention``: channels of the values of one block's attention are made small, and the columns of its output
layers that read them large, by a power of two, so that products stay the same to the last bit. Small rows do no harm,
since each row has its own scales; a large column shares its scales with its neighbours.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

_FILE = Path("transformer") / "diffusion_pytorch_model.safetensors"
_EMBEDDING = "time_text_embed.timestep_embedder.linear_2"
#: The planted weights, as multiples of the largest weight of their matrix.
_TIMES = 30.0
#: The factor of the planted channels of an attention.
_ATTENTION_TIMES = 256.0
#: The groups of weights that share a scale.
_GROUP = 64


def plant_outliers(pipeline: Path) -> None:
    """Silence the least used channel of each group in a pipeline on disk, and make its modulation weights large."""
    tensors = load_file(pipeline / _FILE)
    names = [name for name in tensors if name.endswith("img_mod.1.weight")]
    used = sum(tensors[name].square().sum(0) for name in names) * tensors[f"{_EMBEDDING}.weight"].square().sum(1)
    for first in range(0, len(used), _GROUP):
        channel = first + int(used[first : first + _GROUP].argmin())
        tensors[f"{_EMBEDDING}.weight"][channel] = 0
        tensors[f"{_EMBEDDING}.bias"][channel] = 0
        for name in names:
            tensors[name][:, channel] = _TIMES * tensors[name].abs().max()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, pipeline / _FILE)


def plant_attention(pipeline: Path, block: int) -> None:
    """Plant outliers in the output layers of one block's attention: the first channel of each group."""
    tensors = load_file(pipeline / _FILE)
    prefix = f"transformer_blocks.{block}.attn"
    for projection in ("img_qkv", "txt_qkv"):
        for part in ("weight", "bias"):
            # Queries, keys and values, one after the other.
            tensors[f"{prefix}.{projection}.{part}"].chunk(3)[2][::_GROUP] /= _ATTENTION_TIMES
    for output in ("to_out.0", "to_add_out"):
        tensors[f"{prefix}.{output}.weight"][:, ::_GROUP] *= _ATTENTION_TIMES
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, pipeline / _FILE)
