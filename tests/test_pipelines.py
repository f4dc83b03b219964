"""What is known of the pipelines of diffusers: roles of components, what a pipeline makes, and what its call takes."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from diffusers.pipelines import auto_pipeline

from converter.errors import InputError
from converter.measurement.benchmark.repos import describe_settings
from converter.models.pipeline_calls import describe_call, lacking_inputs, makes
from converter.models.pipeline_memory import pipeline_memory
from converter.models.pipelines import describe_pipeline, refuse_other_output
from converter.models.roles import role
from tests.cases import check_cases
from tests.conftest import edit_json
from tests.expected import check_expected
from tests.tiny_pipelines import save_stable_diffusion


@pytest.fixture(scope="module")
def classes() -> dict[str, Any]:
    """All pipelines of diffusers, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [name for name in dir(diffusers) if "Pipeline" in name and not name.startswith(("Auto", "Diffusion"))]
        found = {name: getattr(diffusers, name, None) for name in names}
    # Some need packages that are not installed here, or are of Flax; and LensPipeline may be registered.
    return {
        name: item
        for name, item in found.items()
        if isinstance(item, type) and issubclass(item, diffusers.DiffusionPipeline) and name != "LensPipeline"
    }


def parameters(pipeline_class: Any) -> Iterator[tuple[str, str]]:
    """Name and class of each component that a constructor names."""
    for name, parameter in inspect.signature(pipeline_class.__init__).parameters.items():
        annotation = parameter.annotation
        text = f"{annotation.__module__}.{annotation.__name__}" if isinstance(annotation, type) else str(annotation)
        for path in re.findall(r"[\w.]*\b[A-Z]\w+", text):
            class_name = path.rpartition(".")[2]
            if class_name not in ("Any", "None", "Optional", "KarrasDiffusionSchedulers"):
                yield name, class_name


def test_every_component_has_a_role(classes: dict[str, Any]) -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for pipeline_class in classes.values():
        for name, class_name in parameters(pipeline_class):
            if not re.search("scheduler|tokenizer|processor|feature_extractor", name):
                found[role(name, class_name)].add(f"{name}: {class_name}")
    lines = [f"{name}\n" + "".join(f"  {item}\n" for item in sorted(items)) for name, items in sorted(found.items())]
    check_expected("pipeline_roles.txt", "".join(lines))


def test_what_pipelines_make_agrees_with_diffusers(classes: dict[str, Any]) -> None:
    def known(name: str) -> set[str]:
        return {item.__name__ for item in getattr(auto_pipeline, f"AUTO_{name}_PIPELINES_MAPPING").values()}

    made = {name: (makes(item), lacking_inputs(item, describe_call(item))) for name, item in classes.items()}
    drawn = {name for name, found in made.items() if found == ("images", "")}
    # The table of diffusers names pipelines that need a control image, and two that make videos.
    assert all("Control" in name or "Helios" in name for name in known("TEXT2IMAGE") & made.keys() - drawn)
    assert not drawn & ((known("IMAGE2IMAGE") | known("INPAINT")) - known("TEXT2IMAGE"))
    for kind in ("TEXT2VIDEO", "IMAGE2VIDEO", "VIDEO2VIDEO"):
        assert {made[name][0] for name in known(kind) & made.keys()} == {"videos"}
    lines = []
    for name, item in classes.items():
        call = describe_call(item)
        guidance = f"{call.guidance} {call.default(call.guidance)}" if call.guidance else "no guidance"
        with_negative = "" if call.takes("negative_prompt") and not call.ignores_negative else ", no negative prompt"
        kind, need = made[name]
        outcome = f"{guidance}{with_negative}" if name in drawn else need if kind == "images" else kind
        lines.append(f"{name}: {outcome}\n")
    check_expected("pipelines.txt", "".join(lines))


def test_measurements_say_which_pipelines_take_no_size() -> None:
    settings: Any = SimpleNamespace(to_evidence=dict)
    for name, expected in (
        ("QwenImagePipeline", {"guidance_argument": "true_cfg_scale"}),
        ("VQDiffusionPipeline", {"guidance_argument": "guidance_scale", "fixed_size": True}),
    ):
        repo: Any = SimpleNamespace(pipeline=SimpleNamespace(call=describe_call(getattr(diffusers, name))))
        assert describe_settings(repo, settings) == expected


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion."""
    return save_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "stable-diffusion")


def test_a_pipeline_is_one_value(stable_diffusion: Path) -> None:
    from converter.checkpoint.components import examine_components

    pipeline = describe_pipeline(stable_diffusion)
    refuse_other_output(pipeline)
    assert (pipeline.class_name, pipeline.makes, pipeline.needs) == ("StableDiffusionPipeline", "images", "")
    assert pipeline.settings == {"requires_safety_checker": True, "image_encoder": [None, None]}
    by_role = {item.name: item.role for item in pipeline.having("denoiser", "autoencoder", "text encoder")}
    assert by_role == {"text_encoder": "text encoder", "unet": "denoiser", "vae": "autoencoder"}
    assert [item.name for item in pipeline.having("safety checker")] == ["safety_checker"]
    assert [item.name for item in pipeline.tokenizers] == ["tokenizer"]
    memory = pipeline_memory(examine_components(stable_diffusion), 2)
    sizes = {item.name: item.bytes for item in memory.components}
    assert sizes.keys() == {"safety_checker", "text_encoder", "unet", "vae"}
    parameters_of_unet = json.loads((stable_diffusion / "unet" / "config.json").read_text())
    assert parameters_of_unet["_class_name"] == "UNet2DConditionModel"
    assert memory.placed("none", on_cpu=True) == (memory.total, 0)
    assert memory.placed("none", on_cpu=False) == (max(sizes.values()), memory.total)
    # Offloading leaves a safety checker on the device.
    checker = sizes.pop("safety_checker")
    assert memory.placed("model", on_cpu=False) == (memory.total, checker + max(sizes.values()))
    host, device = memory.placed("sequential", on_cpu=False)
    assert host == memory.total > max(sizes.values()) > device > 0


def test_lens_is_a_pipeline_too(tiny_repo: Path) -> None:
    pipeline = describe_pipeline(tiny_repo)
    assert (pipeline.class_name, pipeline.makes_images_of_prompts) == ("LensPipeline", True)
    assert [item.name for item in pipeline.having("denoiser", "text encoder", "autoencoder")] == [
        *("text_encoder", "transformer", "vae")
    ]


def test_repos_that_cannot_be_drawn(stable_diffusion: Path, tmp_path: Path) -> None:
    """Which class a repo names, and what is wrong with its components."""

    def outcome(index: dict[str, Any], steps: dict[str, Any]) -> str:
        repo = shutil.copytree(stable_diffusion, tmp_path / "repo")
        edit_json(repo / "model_index.json", **index)
        for name, value in steps.items():
            file = repo / name
            if value is None:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            elif isinstance(value, str):
                file.write_text(value)
            else:
                edit_json(file, **value)
        try:
            refuse_other_output(describe_pipeline(repo))
            return "can be drawn"
        except InputError as error:
            return f"{error.message} | {error.hint}".replace(str(repo), "REPO")
        finally:
            shutil.rmtree(repo)

    check_cases("pipeline_repos.jsonl", outcome)
