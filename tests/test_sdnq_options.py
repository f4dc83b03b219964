"""What a quantization config says: where SDNQ worked has no influence, and what no loader reads is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from converter import ConvertOptions, Recipe, convert, plan, verify
from converter.console import SILENT
from converter.conversion.planning.rules import MISREAD_SCALES, PLACEMENT, has_misread_scales
from converter.conversion.recipe.recipe import Rule
from converter.errors import InputError, RecipeError
from converter.measurement.benchmark.fidelity import compare_weights
from converter.measurement.benchmark.subjects import open_subjects
from tests.checkpoints import WEIGHTS, change_config, failed
from tests.conftest import Lensconv
from tests.reference import convert_with_sdnq
from tests.reporters import Notes
from tests.tiny_models import save_model

LINEAR = "transformer_blocks.0.attn.to_out.0"
#: Where SDNQ worked, as its README has it and as it can be in a file of anyone.
PLACES: list[dict[str, Any]] = [
    {"quantization_device": "cuda", "return_device": "cpu"},
    {"quantization_device": "cuda:0", "return_device": "cuda", "non_blocking": True},
    {"quantization_device": "mps", "return_device": ["nowhere"], "non_blocking": None},
    {"modules_quant_config": {LINEAR: {"quantization_device": "cuda", "return_device": "cpu", "non_blocking": True}}},
    {"modules_quant_config": {f"{LINEAR}.weight": {"add_skip_keys": True, "use_dynamic_quantization": True}}},
]


@pytest.fixture
def folder(lens_output: Path, tmp_path: Path) -> Path:
    """A quantized checkpoint that may be changed."""
    return shutil.copytree(lens_output, tmp_path / "out", ignore=shutil.ignore_patterns("lensconv_manifest.json"))


@pytest.mark.parametrize("options", PLACES)
def test_where_sdnq_worked_has_no_influence(options: dict[str, Any], folder: Path, lens_source: Path) -> None:
    change_config(**options)(folder, {})
    report = verify(folder, against=lens_source, load=options is PLACES[0])
    assert report.ok, failed(report)
    # One copy says it, the other does not.
    places = dict.fromkeys(PLACEMENT)
    by_module = {module: {**own, **places} for module, own in options.get("modules_quant_config", {}).items()}
    change_config("config.json", **places, modules_quant_config=by_module)(folder, {})
    assert "config" not in failed(verify(folder))


def test_a_checkpoint_of_sdnq_that_names_its_device(lens_source: Path, tmp_path: Path) -> None:
    options = {"weights_dtype": "uint4", "quantization_device": "cpu", "return_device": "cpu"}
    output = convert_with_sdnq(lens_source, tmp_path / "out", "LensTransformer2DModel", options)
    assert "cpu" in (output / "quantization_config.json").read_text()
    report = verify(output, against=lens_source)
    assert report.ok, failed(report)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modules_to_not_use_matmul": ["*("]}, "unterminated subpattern"),
        ({"modules_quant_config": {"*[a": {}}}, "unterminated character set"),
        ({"modules_quant_config": {f"{LINEAR}.weight": {"nonsense": 1}}}, "unexpected keyword argument 'nonsense'"),
        ({"hadamard_group_size": "x", "use_hadamard": True}, "TypeError"),
        ({"scale_dtype": "nonsense"}, "scale_dtype nonsense is not a dtype of SDNQ"),
        ({"zero_point_dtype": ""}, "zero_point_dtype  is not a dtype of SDNQ"),
        ({"quantized_matmul_dtype": "none"}, "quantized_matmul_dtype none is not a dtype of SDNQ"),
        ({"scale_dtype": 4}, "scale_dtype must be a string, not 4"),
        ({"group_size": None}, "group_size must be an integer, not None"),
        ({"weights_dtype": None}, "weights_dtype must be a string, not None"),
        (
            {"modules_quant_config": {"a": {"group_size": "4"}}},
            "quant_config: a: group_size must be an integer",
        ),
    ],
)
def test_options_that_sdnq_cannot_use_are_told(
    options: dict[str, Any], said: str, folder: Path, lens_source: Path
) -> None:
    change_config(**options)(folder, {})
    with pytest.raises(InputError) as caught:
        verify(folder, against=lens_source)
    found = caught.value.message
    if "is not a dtype of SDNQ" in said:
        found = failed(verify(folder))["config"]
    assert said in found
    assert "Update" not in caught.value.hint


def test_a_benchmark_keeps_its_figures_when_weights_cannot_be_compared(tiny_repo: Path, release: Path) -> None:
    subjects = {subject.name: subject for subject in open_subjects(tiny_repo, release, SILENT)}
    notes = Notes()
    change_config(quantization_device="cuda", return_device="cuda")(release / "transformer", {})
    assert compare_weights(subjects, notes) is not None
    assert notes.texts.pop().startswith("weights: the check 'manifest' failed")
    change_config(modules_to_not_convert=["*("])(release / "transformer", {})
    assert compare_weights(subjects, notes) is None
    assert notes.texts.pop().startswith("weights were not compared: SDNQ cannot prepare")
    change_config(group_size="4")(release / "transformer", {})
    with pytest.raises(InputError, match="group_size must be an integer"):
        open_subjects(tiny_repo, release, SILENT)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("source") / "lens", "LensTransformer2DModel", num_layers=1)


U4, I8 = {"weights_dtype": "uint4"}, {"weights_dtype": "int8", "use_quantized_matmul": True}
#: Scales or zero points that are quantized by an option for all modules, and how each loader fails.
MISREAD: list[tuple[dict[str, Any], str]] = [
    ({**U4, "scale_dtype": "uint8"}, "scale_2 is not in the loaded model"),
    ({**U4, "scale_dtype": "uint4"}, "scale_2 is not in the loaded model"),
    ({**U4, "zero_point_dtype": "int8"}, "zero_point_scale is not in the loaded model"),
    # All tensors are loaded as they are in the file; the layout of the weight is misread.
    ({**I8, "zero_point_dtype": "uint8"}, "the loaded weight is not that of the file"),
]


@pytest.mark.parametrize(("options", "said"), MISREAD)
def test_what_loaders_misread_is_refused(options: dict[str, Any], said: str, source: Path, tmp_path: Path) -> None:
    recipe = Recipe("mine", options)
    with pytest.raises(RecipeError, match=r"recipe mine: the loaders of sdnq 0\.2\.8 ignore") as caught:
        convert(source, tmp_path / "out", recipe)
    assert "--force" in caught.value.hint
    assert not list(tmp_path.iterdir())
    assert f"{MISREAD_SCALES}; convert refuses this without --force" in plan(source, recipe).notes
    convert(source, tmp_path / "out", recipe, ConvertOptions(force=True))
    report = verify(tmp_path / "out", load=True)
    assert MISREAD_SCALES in report.notes
    problems = failed(report)
    assert problems.keys() == {"load with sdnq", "load with diffusers"}
    assert problems["load with sdnq"].startswith("RuntimeError: Error(s) in loading state_dict")
    assert said in problems["load with diffusers"]


#: The same, but in a rule or without an effect, so that loaders read the weights that SDNQ wrote.
READ: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (U4, {"scale_dtype": "uint8"}),
    (U4, {"scale_dtype": "float8_e4m3fn", "zero_point_dtype": "int8"}),
    ({**U4, "scale_dtype": "int8"}, {"scale_dtype": "uint8"}),
    ({"weights_dtype": "int4", "zero_point_dtype": "uint8"}, {}),
    ({**U4, "scale_dtype": "none", "zero_point_dtype": "none"}, {"scale_dtype": "none"}),
]


@pytest.mark.parametrize(("options", "rule"), READ)
def test_what_loaders_read_is_converted(
    options: dict[str, Any], rule: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    recipe = Recipe("mine", options, (Rule("transformer_blocks.*", options=rule),) if rule else ())
    convert(source, tmp_path / "out", recipe)
    report = verify(tmp_path / "out", against=source, load=True)
    assert report.ok, failed(report)
    assert MISREAD_SCALES not in report.notes


@pytest.mark.parametrize(
    ("options", "rule", "is_misread"),
    [
        (U4, {}, False),
        ({**U4, "scale_dtype": "none", "zero_point_dtype": "none"}, {}, False),
        ({**U4, "scale_dtype": "none", "zero_point_dtype": "uint8"}, {}, True),
        ({**U4, "scale_dtype": "int8"}, {"scale_dtype": "none"}, False),
        ({**U4, "scale_dtype": "int8"}, {"scale_dtype": None}, False),
        ({**U4, "scale_dtype": "int8"}, {"zero_point_dtype": "int8"}, True),
        ({**U4, "zero_point_dtype": "none"}, {"scale_dtype": "uint8"}, True),
        ({**U4, "zero_point_dtype": "int8"}, {"scale_dtype": "uint8"}, True),
        ({**I8, "zero_point_dtype": "none"}, {}, False),
        ({"weights_dtype": "int8", "zero_point_dtype": "uint8"}, {}, False),
        ({"weights_dtype": "int4", "zero_point_dtype": "uint8", "use_quantized_matmul": True}, {}, False),
    ],
)
def test_which_options_are_misread(options: dict[str, Any], rule: dict[str, Any], *, is_misread: bool) -> None:
    """As loaders were seen to read them, each with a model that SDNQ itself had quantized and saved."""
    config = {**options, "modules_quant_config": {"*": rule}}
    has_zero_point = options["weights_dtype"].startswith("u")
    assert has_misread_scales("a.weight", config, has_zero_point=has_zero_point) is is_misread


def test_packed_scales_in_a_rule_are_read_by_sdnq_alone(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", Recipe("mine", U4, (Rule("*.attn.*", options={"scale_dtype": "uint4"}),)))
    problems = failed(verify(tmp_path / "out", load=True))
    assert problems.keys() == {"load with diffusers"}
    assert "SDNQ cannot dequantize what was loaded" in problems["load with diffusers"]


def test_the_command_takes_force(source: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\n[sdnq]\nweights_dtype = "uint4"\nscale_dtype = "uint8"\n')
    line = ("convert", source, tmp_path / "out", "--recipe", tmp_path / "mine.toml", "--json")
    done = lensconv(*line)
    assert (done.code, json.loads(done.stdout)["error"]["type"]) == (2, "RecipeError")
    assert lensconv(*line, "--force").code == 0
    assert any(name.endswith(".scale_2") for name in load_file(tmp_path / "out" / WEIGHTS))
