"""Releases with a card, to be published or spoiled."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import list_file

MANIFEST = "lensconv_manifest.json"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FRONT_MATTER = "---\nlicense: mit\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n\n"


def write_card(release: Path, title: str, license_name: str = "mit") -> None:
    list_file(release, "README.md", f"{FRONT_MATTER}# {title}\n".replace("mit", license_name, 1).encode())


def flip_a_weight(release: Path) -> None:
    content = (release / WEIGHTS).read_bytes()
    (release / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
