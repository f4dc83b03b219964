"""What ``scripts/harm_ranks`` relies on: planted outliers, images before rounding, and ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from converter import read_suite
from converter.console import SILENT
from converter.measurement.sensitivity.calls import record_calls, replay
from scripts.harm_ranks import ROOT, rows
from scripts.harms.images import draw_pairs, squared_errors
from scripts.harms.measuring import Measured, Settings, measure
from scripts.harms.models import PLANTED, Model
from scripts.harms.ranks import compare_ranks
from scripts.signs.planting import plant_attention
from tests.sensitivity import load

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
MODULES = ("a", "b", "c", "d", "unused")


def test_planted_outliers_change_nothing_and_images_are_kept_before_rounding(tiny_repo: Path, tmp_path: Path) -> None:
    """To the last bit, although weights become 256 times as large."""
    loaded, settings = load(tiny_repo, ["a red cube"], steps=1, dtype="float32", guidance=1.0)
    ((image, unrounded),) = draw_pairs(loaded, list(settings.values()))
    assert np.array_equal(image, np.asarray(loaded.draw(settings["a red cube"])))
    # Lens cuts what is behind the point, as its reference does.
    cut = unrounded - image
    assert -1e-4 < cut.min() < 0.01
    assert 0.99 < cut.max() < 1
    assert squared_errors([(image, unrounded)], [(image, image)]).tolist() == [
        [0, pytest.approx(np.square(unrounded - image).mean() / image.var())]
    ]

    calls = record_calls(loaded, settings, 1)
    (tmp_path / "transformer").mkdir()
    shutil.copy(tiny_repo / WEIGHTS, tmp_path / WEIGHTS)
    plant_attention(tmp_path, 2)
    before, planted = load_file(tiny_repo / WEIGHTS), load_file(tmp_path / WEIGHTS)
    for path in PLANTED:
        assert planted[f"{path}.weight"].abs().max() > 100 * before[f"{path}.weight"].abs().max()
    loaded.denoiser.load_state_dict(planted)
    assert [found.error for found in replay(loaded.denoiser, calls, loaded.device)] == [0]


def test_ranks_leave_out_modules_without_effect() -> None:
    """The errors of two prompts have opposite ranks; their means have those of the harms by gradients."""
    errors = np.array([[8, 0.5], [4, 1], [1, 2], [0, 2.5], [0, 0]])
    scores = {"weights": [1, 2, 3, 4, 9.0], "gradients": [8, 4, 2, 1, 0.0]}
    measured = Measured(
        "uint4",
        MODULES,
        {name: dict(zip(MODULES, harms, strict=True)) for name, harms in scores.items()},
        np.stack([errors, errors[:, ::-1]], axis=-1),
    )
    found = compare_ranks(measured, ["b"])
    assert found["modules"] == 5
    assert found["without_effect"] == ["unused"]
    assert found["spearman"] == found["spearman_before_rounding"] == {"weights": -1, "gradients": 1}
    assert found["spearman_of_halves_of_images"] == -1
    assert found["image_errors"] == {"smallest": 1.25, "median": 2, "largest": 4.25}
    assert list(found["worst"]["weights"].items()) == [("unused", 9), ("d", 4), ("c", 3), ("b", 2)]
    assert found["planted"] == {"weights": {"b": 4}, "gradients": {"b": 2}, "images": {"b": 2}}
    assert "planted" not in compare_ranks(measured)


def test_the_table_of_the_docs_is_measured() -> None:
    """Also what is said of it."""
    models = json.loads((ROOT / "benchmarks" / "harm-ranks.json").read_text())["models"]
    text = (ROOT / "docs" / "ablation.md").read_text()
    for row in rows(models):
        assert f"| {' | '.join(row)} |" in text
    candidates = [found for model in models for found in model["candidates"]]
    least = min(found["spearman"][score] for found in candidates for score in ("gradients", "measured"))
    assert least >= 0.8
    places = [found["planted"] for found in candidates if "planted" in found]
    assert [[sorted(found[score].values()) for score in ("gradients", "measured", "images")] for found in places] == [
        [[1, 2]] * 3
    ] * 2


@pytest.mark.long
def test_gradients_rank_modules_as_images_do(tmp_path: Path) -> None:
    prompts = read_suite("signs").prompts
    model = Model("flux", "tiny-flux", {"steps": 2, "height": 64, "width": 64, "max_sequence_length": 16})
    settings = Settings("uint4", prompts[:1], 2, 8, prompts[1:3])
    space, (measured,) = measure(model, tmp_path / "flux", settings, SILENT)
    assert measured.modules == tuple(module.names[0] for module in space.modules)
    found = compare_ranks(measured)["spearman"]
    assert found["gradients"] > 0.8
    assert found["measured"] > 0.8
