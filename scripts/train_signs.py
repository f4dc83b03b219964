"""Train the model of ``lensconv synth --preset signs``: an autoencoder, then a Lens transformer that draws signs.

Everything follows from the seed and the numbers of steps. The text encoder is the one that synth makes from its seed;
it is not trained. An interrupted training goes on where it was saved.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from converter.libraries import waiting_environment

os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"
# Threads that spin for long while they wait would take the CPU from those that they wait for, beside other programs.
os.environ.update(waiting_environment())

import torch
from diffusers import AutoencoderKLFlux2
from safetensors.torch import load_file, save_file

from converter.lens import LensPipeline
from converter.synthesis.signs import vae_config
from converter.synthesis.synthesize import synthesize
from scripts.signs.autoencoder import train_autoencoder
from scripts.signs.denoiser import train_denoiser
from scripts.signs.features import Examples, make_examples

WEIGHTS = "signs.safetensors"


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="scripts/train_signs", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for weights and the log.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="Where to train.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights, pictures and noise.")
    parser.add_argument("--autoencoder-steps", type=int, default=3000, help="Batches of 8 for the autoencoder.")
    parser.add_argument("--steps", type=int, default=5000, help="Batches of 32 for the transformer.")
    parser.add_argument("--examples", type=int, default=8000, help="Signs for the training of the transformer.")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(arguments)


def train(arguments: argparse.Namespace) -> None:
    """Train both models, and write their weights in bfloat16, the log and what it took."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    started, device, out = time.monotonic(), torch.device(arguments.device), arguments.out
    log = TrainingLog(out / "training.jsonl")
    autoencoder = _autoencoder(arguments, device, log)
    examples = _examples(arguments, autoencoder, device)
    transformer = train_denoiser(
        examples, arguments.steps, arguments.seed, device, log, out / "transformer-checkpoint.pt"
    )
    models = {"transformer": transformer, "vae": autoencoder}
    save_file(
        {f"{part}.{name}": tensor for part, model in models.items() for name, tensor in _rounded(model).items()},
        out / WEIGHTS,
    )
    summary = {
        "seed": arguments.seed,
        "autoencoder_steps": arguments.autoencoder_steps,
        "transformer_steps": arguments.steps,
        "examples": arguments.examples,
        "parameters": {part: sum(item.numel() for item in model.parameters()) for part, model in models.items()},
        "bytes": (out / WEIGHTS).stat().st_size,
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "elapsed_s": round(time.monotonic() - started),
        "cpu_s": round(time.process_time()),
    }
    (out / "training.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")


class TrainingLog:
    """Writes the mean loss of every hundred steps as lines of JSON.

    Args:
        path: of the file, which grows where it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.losses: list[float] = []

    def __call__(self, stage: str, step: int, loss: float) -> None:
        """Note the loss of a step, counted from 0."""
        self.losses.append(loss)
        if (step + 1) % 100 == 0:
            mean = sum(self.losses) / len(self.losses)
            self.losses.clear()
            line = {"stage": stage, "step": step + 1, "loss": round(mean, 5)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _autoencoder(arguments: argparse.Namespace, device: torch.device, log: TrainingLog) -> AutoencoderKLFlux2:
    """The trained autoencoder with weights that bfloat16 can hold; from its file where it was trained before."""
    file = arguments.out / "autoencoder.safetensors"
    if not file.exists():
        save_file(_rounded(train_autoencoder(arguments.autoencoder_steps, arguments.seed, device, log)), file)
    model = AutoencoderKLFlux2.from_config(vae_config())
    state = {name: tensor.float() for name, tensor in load_file(file).items()}
    model.load_state_dict({**model.state_dict(), **state})
    return model.to(device).eval()


def _examples(arguments: argparse.Namespace, autoencoder: AutoencoderKLFlux2, device: torch.device) -> Examples:
    """Latents and features; from their file where they were computed before."""
    file, folder = arguments.out / "examples.safetensors", arguments.out / "pipeline"
    if not file.exists():
        if not folder.exists():
            synthesize(folder, preset="tiny")
        pipeline = LensPipeline.from_pretrained(folder, dtype=torch.float32)
        encoder = pipeline.text_encoder.to(device)
        examples = make_examples(arguments.examples, arguments.seed, autoencoder, pipeline.tokenizer, encoder, device)
        save_file({name: tensor.cpu() for name, tensor in vars(examples).items()}, file)
    return Examples(**{name: tensor.to(device) for name, tensor in load_file(file).items()})


def _rounded(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a model in bfloat16, on the CPU."""
    state = model.state_dict()
    return {name: item.bfloat16().cpu().contiguous() for name, item in state.items() if item.is_floating_point()}


if __name__ == "__main__":
    main()
