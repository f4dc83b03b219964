"""What runs an original: it draws as `generate` does, and its denoiser's calls are recorded and repeated exactly."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.header import read_header
from converter.conversion.adapters.choice import AdapterChoice
from converter.errors import EvidenceError, ImageError, LensconvError, UnsupportedCheckpoint, UsageError
from converter.measurement.benchmark.repos import choose_image_settings
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.sensitivity.call_files import FORMAT, read_calls, write_calls
from converter.measurement.sensitivity.calls import Call, record_calls, repeat, replay
from converter.measurement.sensitivity.loaded import LoadedOriginal, load_original, open_original
from converter.measurement.sensitivity.trees import tensors_in
from converter.synthesis.synthesize import synthesize
from tests.conftest import Lensconv, edit_json
from tests.generations import change_tensors, editable, pixels
from tests.reporters import Notes
from tests.sensitivity import PROMPTS, SMALL, load
from tests.tiny_models import WEIGHTS
from tests.tiny_pipelines import save_stable_diffusion


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion, whose denoiser is a UNet that gets its latents by place."""
    return save_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "stable-diffusion", checks=False)


@pytest.mark.parametrize(("pipeline", "offload"), [("lens", "none"), ("lens", "model"), ("other", "none")])
def test_every_image_is_that_of_generate(
    pipeline: str, offload: str, tiny_repo: Path, repo: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    """Also the second one of the same pipeline."""
    folder = tiny_repo if pipeline == "lens" else repo
    loaded, settings = load(folder, offload=offload, negative_prompt="blur", seed=7, guidance=4.0)
    steps = list[None]()
    images = [np.asarray(loaded.draw(found, lambda: steps.append(None))).astype(int) for found in settings.values()]
    assert len(steps) == SMALL["steps"] * len(PROMPTS)
    line = ("--negative-prompt", "blur", "--seed", 7, "--guidance", 4, "--steps", 3, "--height", 64, "--width", 64)
    outcome = lensconv("generate", folder, "--prompt", PROMPTS[1], "--out", tmp_path / "image.png", *line)
    assert outcome.code == 0, outcome.stderr
    assert (pixels(tmp_path / "image.png") == images[1]).all()
    assert (images[0] != images[1]).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("pipeline", ["lens", "other"])
def test_repeated_calls_of_the_original_differ_by_nothing(
    pipeline: str, dtype: str, tiny_repo: Path, repo: Path, tmp_path: Path
) -> None:
    """In memory, and from a file, in which the features that all steps of a prompt share are once."""
    loaded, settings = load(tiny_repo if pipeline == "lens" else repo, dtype=dtype)
    calls = record_calls(loaded, settings, 2)
    assert [(call.prompt, call.step) for call in calls] == [(prompt, step) for prompt in PROMPTS for step in (0, 2)]
    checksum = write_calls(calls, tmp_path / "calls")
    assert checksum == file_sha256(tmp_path / "calls")
    again = read_calls(tmp_path / "calls")
    for found in (calls, again):
        differences = replay(loaded.denoiser, found, loaded.device)
        assert [difference.error for difference in differences] == [0.0] * 4
        assert all(difference.reference > 0 for difference in differences)
    # The same calls make the same file.
    assert write_calls(again, tmp_path / "again") == checksum
    first, second = (list(tensors_in([call.arguments, call.options])) for call in calls[:2])
    shared = {id(tensor) for tensor in first} & {id(tensor) for tensor in second}
    used = {id(tensor) for call in calls for tensor in tensors_in([call.arguments, call.options, call.output])}
    assert shared
    assert len(read_header(tmp_path / "calls").tensors) == len(used)


def test_an_earlier_original_takes_no_memory(tiny_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is freed before free memory is counted, although denoisers refer to themselves once they have drawn."""
    loaded, _ = load(tiny_repo)
    loaded.denoiser.itself = [loaded.denoiser]
    earlier = weakref.ref(loaded.denoiser)
    del loaded
    alive: list[bool] = []
    monkeypatch.setattr(f"{load_original.__module__}.require_memory", lambda *_: alive.append(earlier() is not None))
    gc.disable()
    try:
        load(tiny_repo)
    finally:
        gc.enable()
    assert alive == [False]


def test_changed_weights_are_seen(tiny_repo: Path) -> None:
    loaded, settings = load(tiny_repo, PROMPTS[:1], dtype="float32")
    calls = record_calls(loaded, settings, 8)
    assert [call.step for call in calls] == [0, 1, 2]
    with torch.no_grad():
        loaded.denoiser.proj_out.weight *= 1.25
        loaded.denoiser.proj_out.bias *= 1.25
    errors = [difference.relative for difference in replay(loaded.denoiser, calls, loaded.device)]
    assert errors == pytest.approx([0.25] * 3)


@pytest.mark.long
@pytest.mark.parametrize(
    "preset", ["tiny-flux2", "tiny-qwen-image", "tiny-sana", "tiny-sd3", "tiny-sdxl", "tiny-z-image"]
)
def test_calls_of_every_family(preset: str, tmp_path: Path) -> None:
    """Qwen-Image calls the denoiser twice a step; Z-Image gets and returns lists."""
    synthesize(tmp_path / "repo", preset=preset)
    loaded, settings = load(tmp_path / "repo", negative_prompt="blur" if preset == "tiny-qwen-image" else "")
    calls = record_calls(loaded, settings, 2)
    assert len(calls) == (8 if preset == "tiny-qwen-image" else 4)
    write_calls(calls, tmp_path / "calls")
    differences = replay(loaded.denoiser, read_calls(tmp_path / "calls"), loaded.device)
    assert [difference.error for difference in differences] == [0.0] * len(calls)


class Denoiser(torch.nn.Module):  # type: ignore[misc]
    """Changes its input, as some models do, and returns nested things."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, latents: list[torch.Tensor], *, mask: Any = None, **others: Any) -> Any:
        latents[0].mul_(self.scale)
        return {"sample": (latents[0], None), "count": torch.tensor(3), "mask": mask, **others}


def original(draw: Callable[[torch.nn.Module, Any, Callable[[], object]], Any], denoiser: torch.nn.Module) -> Any:
    """Something that calls a denoiser as it likes."""
    loaded = LoadedOriginal(SimpleNamespace(folder=Path("/repo"), denoiser="transformer"), None, None, None)  # type: ignore[arg-type]
    return SimpleNamespace(
        repo=loaded.repo,
        component="transformer",
        denoiser=denoiser,
        draw=lambda settings, step_done: draw(denoiser, settings, step_done),
    )


def draw_five(denoiser: torch.nn.Module, settings: Any, step_done: Callable[[], object]) -> None:
    """Five steps of two calls, of which the second one is with other latents."""
    for step in range(5):
        for branch in range(2):
            latents = torch.full((1, 2), float(settings + step + branch))
            # diffusers' guidance changes what the model returned.
            denoiser([latents], mask=torch.tensor([True]))["sample"][0].mul_(10)
        step_done()


def test_both_branches_of_chosen_steps_are_recorded_as_they_were() -> None:
    denoiser = Denoiser()
    for count, steps in ((1, [2]), (2, [0, 4]), (3, [0, 2, 4]), (9, [0, 1, 2, 3, 4])):
        calls = record_calls(original(draw_five, denoiser), {"A": 1}, count)  # type: ignore[dict-item]
        assert [call.step for call in calls] == [step for step in steps for _ in range(2)]
        inputs = [float(call.arguments[0][0][0, 0]) for call in calls]
        assert inputs == [1.0 + step + branch for step in steps for branch in range(2)]
        assert [[float(part[0, 0]) for part in call.output] for call in calls] == [[2 * value] for value in inputs]
        assert [found.error for found in replay(denoiser, calls, torch.device("cpu"))] == [0.0] * len(calls)
        assert not denoiser._forward_pre_hooks
        assert not denoiser._forward_hooks
        # What was recorded stays as it was.
        assert [float(call.arguments[0][0][0, 0]) for call in calls] == inputs


def test_the_error_is_that_of_float64() -> None:
    call = Call("A", 0, ([torch.tensor([[3.0, 4.0]])],), {}, (torch.tensor([[6.0, 8.0]]),))
    denoiser = Denoiser()
    denoiser.scale.data.fill_(2.5)
    (found,) = replay(denoiser, [call], torch.device("cpu"))
    assert [found.error, found.reference, found.relative] == pytest.approx([6.25, 100.0, 0.25])
    denoiser.scale.data.fill_(float("nan"))
    with pytest.raises(ImageError, match="prompt A, step 0: the denoiser computed numbers that are not finite"):
        replay(denoiser, [call], torch.device("cpu"))
    assert repeat(Denoiser(), call, torch.device("cpu"))[0].tolist() == [[6.0, 8.0]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"noise": torch.tensor([float("inf")])},
            ImageError,
            "prompt A, step 1: the denoiser's input or output is not",
        ),
        ({"generator": torch.Generator()}, UnsupportedCheckpoint, r"step 1: .* torch\._C\.Generator, which cannot be"),
        (None, UnsupportedCheckpoint, "/repo: drawing does not call transformer"),
    ],
)
def test_calls_that_cannot_be_recorded(options: Any, error: type[LensconvError], message: str) -> None:
    def draw(denoiser: torch.nn.Module, _: Any, step_done: Callable[[], object]) -> None:
        step_done()
        if options is not None:
            denoiser([torch.ones(1)], **options)

    with pytest.raises(error, match=message):
        record_calls(original(draw, Denoiser()), {"A": 1}, 1)  # type: ignore[dict-item]


def test_a_weight_that_is_not_finite_shows_when_calls_are_recorded(tiny_repo: Path, tmp_path: Path) -> None:
    folder = editable(tiny_repo, tmp_path)
    change_tensors(
        folder / "transformer" / WEIGHTS,
        lambda found: found["proj_out.bias"].fill_(np.nan),
    )
    loaded, settings = load(folder, PROMPTS[:1])
    with pytest.raises(ImageError, match="prompt a red cube, step 0: the denoiser's input or output is not finite"):
        record_calls(loaded, settings, 1)


def test_an_image_that_is_not_finite(repo: Path, tmp_path: Path) -> None:
    folder = editable(repo, tmp_path)
    change_tensors(folder / "unet" / WEIGHTS, lambda found: found["conv_out.bias"].fill_(np.nan))
    loaded, settings = load(folder, PROMPTS[:1])
    with pytest.raises(ImageError, match="computed numbers that are not finite"):
        loaded.draw(settings[PROMPTS[0]])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"offload": "sequential"}, "--offload sequential"),
        ({"compile": "blocks"}, "--compile blocks"),
        ({"int8": "chain"}, "--int8 chain"),
        ({"adapters": (AdapterChoice(Path("x")),)}, "--lora"),
    ],
)
def test_options_that_keep_weights_elsewhere(options: dict[str, Any], named: str, tiny_repo: Path) -> None:
    with pytest.raises(UsageError, match=f"^{named}: "):
        load_original(open_original(tiny_repo), [], GenerateOptions(**options))


def test_originals_that_are_quantized(tiny_release: Path, repo: Path, tmp_path: Path) -> None:
    """Another component than the denoiser counts as well."""
    with pytest.raises(UnsupportedCheckpoint, match="transformer is quantized already"):
        open_original(tiny_release)
    folder = editable(repo, tmp_path)
    edit_json(folder / "text_encoder" / "config.json", quantization_config={"quant_method": "sdnq"})
    with pytest.raises(UnsupportedCheckpoint, match="text_encoder is quantized already"):
        open_original(folder)
    edit_json(folder / "text_encoder" / "config.json", quantization_config=None)
    assert open_original(folder).denoiser == "unet"


def test_of_two_denoisers_one_is_measured(repo: Path, tmp_path: Path) -> None:
    folder, notes = editable(repo, tmp_path), Notes()
    shutil.copytree(folder / "unet", folder / "unet_2")
    edit_json(folder / "model_index.json", unet_2=["diffusers", "UNet2DConditionModel"])
    opened, options = open_original(folder), GenerateOptions(**SMALL)
    loaded = load_original(opened, [choose_image_settings(opened, "a", options)], options, reporter=notes)
    assert "StableDiffusionPipeline has unet and unet_2; only unet is measured" in notes.texts
    assert (loaded.component, loaded.checkpoint.component) == ("unet", "unet")


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from([torch.ones(2, 3), torch.tensor(True), torch.empty(0, 4), torch.tensor([1j])]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return bool(first.dtype == second.dtype and torch.equal(first, second))
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and same(list(first.values()), list(second.values()))
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@given(tree=TREES)
def test_calls_are_read_as_they_were_written(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "calls-of-trees"
    call = Call("A", 3, (tree,), {"more": tree}, (torch.ones(1),))
    write_calls([call], file)
    (found,) = read_calls(file)
    assert same(
        [found.prompt, found.step, found.arguments, found.options, found.output],
        ["A", 3, (tree,), {"more": tree}, (torch.ones(1),)],
    )


CALL: dict[str, Any] = {
    "prompt": "A",
    "step": 0,
    "arguments": {"tuple": [{"tensor": "0"}]},
    "options": {"dict": [["x", {"value": 1}]]},
    "output": {"tuple": [{"tensor": "0"}]},
}
DEEP: Any = {"value": 1}
for _ in range(40):
    DEEP = {"list": [DEEP]}


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": 1},
        {"step": -1},
        {"step": True},
        {"arguments": {"tensor": "0"}},
        {"arguments": {"tuple": [{"tensor": "9"}]}},
        {"arguments": {"tuple": [{"tensor": ["0"]}]}},
        {"arguments": {"tuple": [{"tensor": "0", "value": 1}]}},
        {"arguments": {"tuple": [{"code": "0"}]}},
        {"arguments": {"tuple": [{"value": []}]}},
        {"arguments": {"tuple": [DEEP]}},
        {"options": {"dict": [["x"]]}},
        {"options": {"dict": [[1, {"value": 1}]]}},
        {"options": {"list": []}},
        {"output": {"tuple": []}},
        {"output": {"tuple": [{"tensor": "1"}]}},
        {"output": {"tuple": [{"value": 1.5}]}},
    ],
)
def test_files_that_describe_no_calls(changes: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "calls"
    tensors = {"0": torch.ones(2), "1": torch.ones(2, dtype=torch.int64)}
    metadata = {"format": FORMAT, "calls": json.dumps({"calls": [CALL]})}
    save_file(tensors, file, metadata)
    assert read_calls(file)[0].options == {"x": 1}
    save_file(tensors, file, {**metadata, "calls": json.dumps({"calls": [{**CALL, **changes}]})})
    with pytest.raises(EvidenceError, match="calls"):
        read_calls(file)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"format": "lensconv-calls/2"},
        {"format": FORMAT},
        {"format": FORMAT, "calls": "[" * 100_000},
        {"format": FORMAT, "calls": "{}x"},
    ],
)
def test_files_of_something_else(metadata: dict[str, str], tmp_path: Path) -> None:
    save_file({"0": torch.ones(2)}, tmp_path / "calls", metadata)
    with pytest.raises(LensconvError, match="calls: "):
        read_calls(tmp_path / "calls")
    assert load_file(tmp_path / "calls")
