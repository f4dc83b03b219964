"""The ablation on a card and in a report: only that of the release's own weights, and texts that stay texts."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from converter import errors
from converter.front_matter import parse_front_matter
from converter.measurement.benchmark.preparing import own_files
from converter.measurement.evidence.files import write_evidence
from converter.measurement.evidence.names import ABLATION_NAME, IMAGES_NAME
from converter.measurement.evidence.origin import origin_note
from converter.measurement.sensitivity import digest
from converter.presentation.card.make_card import make_card
from converter.presentation.card.options import CardOptions
from converter.presentation.charts.draw_charts import draw_charts
from converter.presentation.grid.make_grid import make_grid
from converter.presentation.report.make_report import make_report
from converter.presentation.tables.ablation_findings import describe_findings
from converter.verification.verify import verify
from tests import ablations
from tests.conftest import Lensconv, edit_json, names_in, snapshot
from tests.expected import check_expected

WEIGHTS = "diffusion_pytorch_model.safetensors"
OPTIONS = CardOptions(license="mit", repo="owner/Tiny", unverified=True)
STALE = "is stale: none of its variants has the weights of the release"


@pytest.fixture
def release(tiny_release: Path, tmp_path: Path) -> Path:
    """A release that may be changed."""
    return Path(shutil.copytree(tiny_release, tmp_path / "release"))


def weights_of(folder: Path) -> tuple[str, int]:
    """Digest and bytes of the tensors in a folder, by the library of the format."""
    described, total = [], 0
    with safe_open(folder / WEIGHTS, "np") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            part = file.get_slice(name)
            dtype, shape = part.get_dtype(), part.get_shape()
            described.append((name, dtype, shape))
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    lines = []
    for name, dtype, shape in sorted(described):
        start, stop = (8 + length + offset for offset in header[name]["data_offsets"])
        lines.append(json.dumps([name, dtype, shape, hashlib.sha256(content[start:stop]).hexdigest()]) + "\n")
        total += stop - start
    return hashlib.sha256("".join(lines).encode()).hexdigest(), total


def measured(release: Path, number: int = 0) -> ablations.Content:
    """An ablation in which one variant has the weights of a release."""
    sha256, total = weights_of(release / "transformer")
    found = ablations.resized(ablations.builtin(), number, total)
    found["variants"][number]["sha256"] = sha256
    pairs = [(0.1, 0.02), (0.2, 0.03), (0.15, 0.0), (0.12, 0.1), (0.2, 0.05)]
    worse = [(pattern + 1, rate) for pattern, rate in pairs]
    names = [variant["name"] for variant in found["variants"][:2]]
    ablations.with_images(found, {names[0]: pairs, names[1]: worse}, [0.02] * 5, pairs)
    found["variants"][3]["failed"] = {"images": "out of `memory`\n# |"}
    return found


def write(folder: Path, found: ablations.Content, *, pictures: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    if pictures:
        ablations.draw_images(folder, found)
    write_evidence(folder, ABLATION_NAME, found)
    if pictures:
        draw_charts(folder)
        make_grid(folder)
    return folder


def section(release: Path) -> str:
    """The section of a card."""
    text = (release / "README.md").read_text()
    return re.split(r"\n## (?=Provenance)", text.partition("\n## Ablation\n")[2])[0]


def test_the_section_of_a_card(release: Path, tmp_path: Path) -> None:
    found = measured(release)
    report = make_card(release, write(tmp_path / "evidence", found, pictures=True), OPTIONS)
    assert "ablation" in report.sections
    assert report.verified
    names = [file.name for file in report.files]
    pictures = [name for name in names if "/" in name]
    expected = ["assets/ablation/ablation.webp", "assets/charts/ablation-dark.png", "assets/charts/ablation-light.png"]
    assert pictures == expected
    assert ABLATION_NAME in names
    assert verify(release, checksums=True).ok
    text = (release / "README.md").read_text()
    assert "ablation" in parse_front_matter(text)[0]["tags"]
    assert "What was measured with this model is under [Ablation](#ablation)." in text
    assert "\n## Charts\n" not in text
    check_expected("card_ablation.md", section(release))
    # The release itself has all that its card needs.
    assert make_card(release, options=OPTIONS).sections == report.sections
    assert check_same(release, text)


def check_same(release: Path, text: str) -> bool:
    return (release / "README.md").read_text() == text


def test_the_variant_that_the_release_is_has_a_name(release: Path, tmp_path: Path) -> None:
    """Also where it is not the recipe that was examined; a hostile name is text."""
    name = "a|b*c*\x1b <b>"
    found = measured(release, 1)
    found["variants"][1]["name"] = name
    make_card(release, write(tmp_path / "evidence", found), OPTIONS)
    shown = section(release)
    escaped = r"a\|b\*c\*&#92;x1b &lt;b&gt;"
    assert f"the variant <code>{escaped}</code>; the examined recipe is `lens-uint4-static`." in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("| a\\|b")]
    assert "| this release, front |" in row
    assert "<b>" not in shown
    assert "assets/" not in shown


def test_an_ablation_of_other_weights_is_stale(release: Path, tmp_path: Path) -> None:
    found = measured(release)
    folder = write(tmp_path / "evidence", found)
    changes: list[dict[str, Any]] = [{"sha256": "0" * 64}, {"component": "vae"}]
    for change in changes:
        changed = {**found, "variants": [dict(made) for made in found["variants"]]}
        (changed if "component" in change else changed["variants"][0]).update(change)
        write_evidence(folder, ABLATION_NAME, changed)
        before = snapshot(release)
        with pytest.raises(errors.EvidenceError) as caught:
            make_card(release, folder, OPTIONS)
        assert caught.value.message == f"{folder}/{ABLATION_NAME}: {STALE}"
        assert caught.value.hint == "Run `lensconv ablate` again with --recipe of this release."
        assert snapshot(release) == before
    # One bit of a weight is another release.
    write_evidence(folder, ABLATION_NAME, found)
    file = release / "transformer" / WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(errors.EvidenceError, match="is stale"):
        make_card(release, folder, OPTIONS)


def test_an_ablation_of_other_pictures_is_refused(release: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "evidence", measured(release), pictures=True)
    for name, command in (("assets/ablation/ablation.webp", "grid"), ("assets/charts/ablation-dark.png", "charts")):
        kept, stream = (folder / name).read_bytes(), io.BytesIO()
        Image.new("L", (1, 1)).save(stream, "PNG", exif=origin_note("others"))
        (folder / name).write_bytes(stream.getvalue())
        with pytest.raises(errors.EvidenceError, match="was made from other measurements") as caught:
            make_card(release, folder, OPTIONS)
        assert caught.value.hint == f"Make it again with `lensconv {command}`."
        (folder / name).write_bytes(kept)
    (folder / ABLATION_NAME).unlink()
    write_evidence(folder, "weight_fidelity.json", {"schema": "lensconv.weights/1", **_fidelity()})
    with pytest.raises(errors.EvidenceError, match=r"ablation\.webp: was made from other measurements"):
        make_card(release, folder, OPTIONS)


def _fidelity() -> dict[str, Any]:
    fidelity: dict[str, Any] = {"sqnr_db": {"min": None, "median": None}, "worst": [], "families": []}
    return {"fidelity": fidelity | dict.fromkeys(("max_abs_error", "max_error_steps", "cosine_min"))}


def test_weights_are_read_only_for_an_ablation(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only if a variant has as many bytes."""

    def fail(*_: object) -> str:
        raise AssertionError("the weights are read")

    monkeypatch.setattr(digest, "weights_digest", fail)
    folder = write(tmp_path / "evidence", ablations.builtin())
    with pytest.raises(errors.EvidenceError, match="is stale"):
        make_card(release, folder, OPTIONS)
    (folder / ABLATION_NAME).unlink()
    write_evidence(folder, "weight_fidelity.json", {"schema": "lensconv.weights/1", **_fidelity()})
    report = make_card(release, folder, OPTIONS)
    assert report.left_out["ablation"] == "ablation.json is missing"
    with pytest.raises(AssertionError, match="the weights are read"):
        make_card(release, write(folder, measured(release)), OPTIONS)


def test_a_component_of_its_own(lens_output: Path, tmp_path: Path) -> None:
    component = Path(shutil.copytree(lens_output, tmp_path / "component"))
    sha256, total = weights_of(component)
    found = ablations.resized(ablations.builtin(), 0, total)
    found["variants"][0]["sha256"] = sha256
    for name in ("", "transformer"):
        found["component"] = name
        report = make_card(component, write(tmp_path / "evidence", found), CardOptions(license="mit"))
        assert "ablation" in report.sections


def test_an_ablation_that_an_older_summary_describes(release: Path, tmp_path: Path) -> None:
    """Its sentence stays, above what was measured."""
    edit_json(release / "sdnq_quantization_summary.json", root_cause_from_turbo_ablation="Modulation *did* it.")
    report = make_card(release, options=OPTIONS)
    assert section(release).strip() == r"Modulation \*did\* it."
    assert "ablation" not in report.left_out
    make_card(release, write(tmp_path / "evidence", measured(release)), OPTIONS)
    assert section(release).strip().startswith(r"Modulation \*did\* it.")
    assert "This release is the variant `lens-uint4-static`." in section(release)


@pytest.mark.long
def test_a_report_has_a_section(tmp_path: Path) -> None:
    found = measured_alone()
    make_report(write(tmp_path / "evidence", found, pictures=True))
    page = (tmp_path / "evidence" / "report.html").read_text("utf-8")
    assert '<section id="ablation">' in page
    assert page.count("<caption>Variants</caption>") == 1
    assert page.count("relative error of the denoiser&#39;s output, before guidance") == 1
    for sentence in describe_findings(found):
        assert f'<p class="note">{sentence}</p>' in page
    # The original alone was measured.
    assert "<td>owner/Source</td>" in page


def measured_alone() -> ablations.Content:
    found = ablations.builtin()
    pairs = [(0.1, 0.02), (0.2, 0.03), (0.15, 0.0), (0.12, 0.1), (0.2, 0.05)]
    return ablations.with_images(found, {found["variants"][0]["name"]: pairs}, [0.02] * 5)


def test_a_benchmark_leaves_an_ablation_alone(tmp_path: Path, lensconv: Lensconv) -> None:
    """Both may be in one folder."""
    names = [file.name for file in own_files(tmp_path / "evidence", tmp_path / "release")]
    assert ABLATION_NAME not in names
    assert IMAGES_NAME in names
    write(tmp_path / "evidence", measured_alone(), pictures=True)
    assert lensconv("evidence", tmp_path / "evidence", "--json").code == 0
    assert names_in(tmp_path / "evidence" / "assets") == ["ablation", "charts"]
