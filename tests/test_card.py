"""Cards: every figure of the evidence, nothing of anybody else's, and texts that stay texts."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from converter.errors import EvidenceError, InputError, ReleaseError, SuiteError, UsageError
from converter.front_matter import parse_front_matter
from converter.measurement.evidence.origin import grid_text, origin_note
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.presentation.card.environment import render_card
from converter.presentation.card.make_card import make_card
from converter.presentation.card.markdown import fence
from converter.presentation.card.metadata import CardMetadata, GalleryImage, MetadataReport, check_metadata
from converter.presentation.card.options import CardOptions
from converter.presentation.card.page import render_page
from converter.presentation.charts.draw_charts import draw_charts
from converter.publication.preflight import examine_release
from converter.verification.verify import verify
from tests.conftest import snapshot
from tests.published import PUBLISHED, published_matrix, published_metrics, shown_figures, write_published

UNVERIFIED = CardOptions(repo="owner/Tiny", license="mit", unverified=True)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The published figures, which contain no sha256."""
    folder = tmp_path / "evidence"
    folder.mkdir()
    return write_published(folder)


def test_every_published_figure_is_on_the_card(release: Path, published: Path) -> None:
    report = make_card(release, published, UNVERIFIED)
    text = (release / "README.md").read_text()
    expected = shown_figures([make() for make in PUBLISHED.values()])
    assert len(expected) >= 60
    assert {number for number in expected if number not in text} == set()
    deltas = ["+23.5%", "+9.3%", "+28.6%", "+23.6%", "+24.7%", "+8.3%", "+6.5%", "+6.6%", "+9.5%", "+28.9%"]
    rows = re.findall(r"^\| P\d\d .*$", text, re.MULTILINE)
    assert [delta in row for delta, row in zip(deltas, rows, strict=True)] == [True] * 10
    for figure in ("`FLOAT32` bytes", "73.8%", "47.6%", "+16.8%", "+11.4% to +22.3%", "1,358,954,496", "2,942,501,632"):
        assert figure in text
    assert not report.verified
    assert "Unverified figures" in text
    assert "belong to another checkpoint" in text
    assert check_metadata(text) == MetadataReport()
    assert "- model-cpu-offload\n" in text
    assert "- ablation\n" not in text
    assert "ablation" not in {*report.sections, *report.left_out}


def test_figures_without_a_checksum_are_taken_only_when_asked_for(release: Path, published: Path) -> None:
    before = snapshot(release)
    (published / "sdnq_quantization_summary.json").unlink()
    with pytest.raises(EvidenceError, match="contains no sha256"):
        make_card(release, published)
    assert snapshot(release) == before


def sourced(folder: Path, digest: str) -> Path:
    """A matrix that names the weights that it was measured on."""
    weights = [{"name": "diffusion_pytorch_model.safetensors", "bytes": 1, "sha256": digest}]
    source = {"repo_id": "owner/tiny", "revision": None, "transformer": weights}
    content = {**published_matrix(), "sources": {"original": source, "quantized": source}}
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "comparison_matrix.json").write_text(json.dumps(content))
    return folder


def test_measurements_of_other_weights_are_stale(release: Path, published: Path) -> None:
    before = snapshot(release)
    weights = release / "transformer" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    for unverified in (False, True):
        with pytest.raises(EvidenceError, match="stale"):
            make_card(release, sourced(published, "0" * 64), CardOptions(unverified=unverified))
    assert snapshot(release) == before
    assert make_card(release, sourced(published, digest)).verified
    assert "Unverified" not in (release / "README.md").read_text()


def test_pictures_of_other_measurements_are_stale(release: Path, published: Path) -> None:
    (chart, *_) = [chart for chart in draw_charts(published).charts if chart.name == "time"]
    grid = published / "assets" / "comparison" / "comparison_preview.webp"
    grid.parent.mkdir()
    Image.new("RGB", (8, 8)).save(grid, exif=origin_note(grid_text(published_matrix())))
    make_card(release, published, UNVERIFIED)
    text = html.unescape((release / "README.md").read_text())
    assert f'alt="{chart.description}"' in text
    assert "](assets/comparison/comparison_preview.webp)" in text
    # Nothing comes along that the card does not show.
    assert not list((release / "assets").rglob("*.svg"))
    before = snapshot(release)
    shutil.copy(published / "assets/charts/memory-dark.png", published / "assets/charts/time-dark.png")
    with pytest.raises(EvidenceError, match=r"time-dark.png: was made from other measurements.*") as caught:
        make_card(release, published, UNVERIFIED)
    assert "lensconv charts" in caught.value.hint
    Image.new("RGB", (8, 8)).save(grid)
    with pytest.raises(EvidenceError, match=r"comparison_preview\.webp: was made from other"):
        make_card(release, published, UNVERIFIED)
    assert snapshot(release) == before


def test_prompts_of_the_suite_that_was_drawn_are_shown_in_full(release: Path, published: Path, tmp_path: Path) -> None:
    rows = published_matrix()["prompts"]
    assert make_card(release, published, UNVERIFIED).left_out["prompts"]
    facts = [(row["id"], row["scenario"], row["seed"]) for row in rows]
    prompts = tuple(SuitePrompt(*fact, f"A sign of {fact[1]}.", ()) for fact in facts)
    suite = tmp_path / "suite.toml"
    suite.write_text(PromptSuite("drawn", prompts).to_toml())
    options = replace(UNVERIFIED, prompts=str(suite))
    assert "prompts" not in make_card(release, published, options).left_out
    text = (release / "README.md").read_text()
    assert all(prompt.prompt in text for prompt in prompts)
    before = snapshot(release)
    suite.write_text(PromptSuite("other", (*prompts[:9], replace(prompts[9], seed=7))).to_toml())
    with pytest.raises(EvidenceError, match="prompt P10, seed 310, differs from the suite"):
        make_card(release, published, options)
    with pytest.raises(SuiteError):
        make_card(release, published, replace(UNVERIFIED, prompts="no-such-suite"))
    assert snapshot(release) == before


def test_programs_are_for_whole_pipelines(release: Path, lens_output: Path, tmp_path: Path) -> None:
    component = Path(shutil.copytree(lens_output, tmp_path / "component"))
    for folder, is_shown in ((release, True), (component, False)):
        report = make_card(folder, options=CardOptions(license="mit"))
        assert ("usage" in report.sections) == is_shown
        assert ("from_pretrained(" in (folder / "README.md").read_text()) == is_shown


def test_texts_that_look_like_numbers_are_in_quotes() -> None:
    gallery = (GalleryImage("12e4", "images/quantized/a%41.png"),)
    tags = ("1e3", "08", "0o17", ".5", "v1", "no")
    metadata = CardMetadata("mit", None, None, None, None, "diffusers", "text-to-image", ("en",), tags, gallery)
    text = metadata.to_yaml()
    # YAML 1.2 has other numbers than YAML 1.1, which PyYAML writes.
    for shown in ("- '1e3'", "- '08'", "- '0o17'", "- '.5'", "- v1", "- 'no'", "text: '12e4'", "a%2541.png"):
        assert shown in text
    content, fault = parse_front_matter(text)
    assert (content["tags"], fault) == ([*tags], "")


def front_matter(*lines: str) -> str:
    return "\n".join(("---", *lines, "---", "# Card", ""))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("license: other", "license other needs a license_name"),
        ("license: mit\nlicense_name: mine", "license_name is for license other, not for mit"),
        ("license: {mit: 1}", "license a dict is not text"),
        ("license_link: http://example.com/license", "neither an https address nor LICENSE"),
        ("base_model_relation: quantized", "base_model_relation needs a base_model"),
        ("base_model_revision: main", "is not a commit of 40 hexadecimal digits"),
        ("tags: [1e3, 7]", "tags 7 is not text; put it in quotes"),
        (f"tags: [{'a' * 101}]", "is longer than 100 characters"),
        ("language: no", "language False is not text; put it in quotes"),
        ("library_name: a b", "is not the name of a library"),
        ("widget: a", "widget is not a list"),
        ("widget: [{output: {url: a.png}}]", "widget: entry 1 has no text"),
        ("widget: [{text: a, output: b}]", "widget: the output of entry 1 has a url that is not text"),
        ("widget: [{text: a, output: {url: ../b.png}}]", "widget: entry 1 shows ../b.png"),
        ("widget: [{text: a, output: {url: 'http://b'}}]", "widget: entry 1 shows http://b"),
        ("license: [mit, 3]", "license"),
        ("base_model: a/b/c", "base_model"),
        ("base_model_relation: other", "base_model_relation"),
        ("pipeline_tag: draw me", "pipeline_tag"),
        ("pipeline_tag: [text-to-image]", "pipeline_tag"),
        ("tags: a", "tags"),
        ("license_name: My License", "license_name"),
        ("license_link: ../LICENSE", "license_link"),
        ("model-index: {}", "model-index"),
        ("- a", "not a mapping"),
        ("a: !!python/object:os.system {}", "not YAML"),
        ("a: [", "its front matter is not YAML in line 2: "),
        (f"a: {'b' * 1_000_000}", "is longer than 1000000 characters"),
    ],
)
def test_metadata_that_cannot_be_right(line: str, said: str) -> None:
    report = check_metadata(front_matter(line))
    assert said in " ".join(report.errors)
    assert not report.warnings


def test_metadata_that_is_right() -> None:
    quantized = ("license: apache-2.0", "base_model: [a/b]", "base_model_relation: quantized")
    licensed = ("license: other", "license_name: my-1.0", "license_link: LICENSE.md", "language: [en]", "tags: [a]")
    for lines in ((*quantized, "pipeline_tag: text-to-image"), licensed):
        assert check_metadata(front_matter(*lines)) == MetadataReport()


def test_a_card_needs_front_matter() -> None:
    assert check_metadata("# Card\n").errors[0].startswith("it has no front matter")
    assert "surrogate" in check_metadata('---\ntags: ["a\\uD800b"]\n---\n').errors[0]
    assert check_metadata("\ufeff" + front_matter("license: mit")).errors[0].startswith("it begins with a byte order")


def test_names_that_the_hub_may_know_are_warned_of(release: Path) -> None:
    names = front_matter("license: apache2", "pipeline_tag: text2image", "language: [en, zxx, xx, code]")
    assert check_metadata(names) == MetadataReport(
        (),
        (
            "license apache2 is not known to lensconv; did you mean apache-2.0?",
            "pipeline_tag text2image is not known to lensconv; did you mean text-to-image?",
            "language xx is not known to lensconv; the Hub decides whether it is valid",
        ),
    )
    warning = "license brand-new-1.0 is not known to lensconv; the Hub decides whether it is valid"
    assert warning in make_card(release, options=CardOptions(license="brand-new-1.0")).warnings
    assert make_card(release, options=CardOptions(adopt=True)).warnings == (warning,)
    assert f"README.md: {warning}" in examine_release(release, "owner/Tiny").advice


def test_pins_are_the_versions_that_drew_or_else_those_that_made_it(release: Path, published: Path) -> None:
    make_card(release, published, UNVERIFIED)
    text = (release / "README.md").read_text()
    made = json.loads((release / "lensconv_manifest.json").read_text())["versions"]
    assert "Made with these versions:" in text
    assert "PyTorch: 2.8.0; CUDA: 12.8; storage: local container disk; date: 2026-05-24." in text
    assert "base resolution: 1440; " in text
    assert "steps: 20; guidance: 5.0" in text
    assert f"sdnq=={made['sdnq']}\n" in text
    metrics = published_metrics()
    metrics["environment"] |= {"sdnq": "0.2.4", "torch": "2.11.0+cu128", "accelerate": "1.13.0"}
    (published / "benchmark_metrics.json").write_text(json.dumps(metrics))
    make_card(release, published, UNVERIFIED)
    text = (release / "README.md").read_text()
    assert "Measured with these versions:\n\n```text\nsdnq==0.2.4\ntorch==2.11.0\naccelerate==1.13.0\n```" in text


def test_what_a_later_card_does_not_use_leaves_the_release(release: Path, published: Path) -> None:
    make_card(release, published, UNVERIFIED)
    assert (release / "model_cpu_offload_benchmark.json").is_file()
    (published / "model_cpu_offload_benchmark.json").unlink()
    make_card(release, published, UNVERIFIED)
    assert not (release / "model_cpu_offload_benchmark.json").exists()
    assert verify(release, checksums=True).ok


def test_the_card_is_listed_and_the_release_fit_to_be_published(release: Path, published: Path) -> None:
    make_card(release, published, UNVERIFIED)
    first = snapshot(release)
    assert verify(release, checksums=True).ok
    assert {file.name for file in examine_release(release, "owner/Tiny").files} == {*first}
    with pytest.raises(ReleaseError, match="tells people to load owner/Tiny"):
        examine_release(release, "owner/Other")
    shutil.rmtree(release / ".lensconv")
    make_card(release, published, UNVERIFIED)
    assert snapshot(release) == first
    # Without the measurements they leave the release again.
    for name in ("benchmark_metrics.json", "comparison_matrix.json", "model_cpu_offload_benchmark.json"):
        (release / name).unlink()
    make_card(release)
    assert not (release / "benchmark_metrics.json").exists()
    assert verify(release, checksums=True).ok


def test_a_card_written_by_hand_is_kept_and_adopted(release: Path) -> None:
    make_card(release)
    card = release / "README.md"
    card.write_text(card.read_text() + "\nOne more line.\n")
    with pytest.raises(ReleaseError, match="written by hand"):
        make_card(release)
    make_card(release, options=CardOptions(adopt=True))
    assert verify(release, checksums=True).ok
    assert card.read_text().endswith("One more line.\n")
    card.write_text("no front matter")
    with pytest.raises(ReleaseError, match="front matter"):
        make_card(release, options=CardOptions(adopt=True))


@pytest.mark.parametrize(
    "options", [{"repo": "tiny"}, {"repo": "a/b/c"}, {"base_model": "](x)"}, {"base_revision": "main"}]
)
def test_options_that_make_no_sense(release: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make_card(release, options=CardOptions(**options))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ nothing }}", "line 1"),
        ("\n{% if %}", "line 2"),
        ("{{ ''.__class__.__mro__ }}", "line 1"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "iterations"),
        ("{% include 'other.jinja' %}", "other.jinja"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
def test_a_template_that_fails_says_where(tmp_path: Path, text: str, reason: str) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(text)
    with pytest.raises(InputError, match=reason):
        render_card({}, template)


class Shown(HTMLParser):
    """The text of the element that holds what was escaped, and the elements inside it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - as its base
        if self._inside:
            self.elements.append(tag)
        self._inside = self._inside or tag == "em"

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "em"

    def handle_data(self, data: str) -> None:
        self.text += data if self._inside else ""


@given(st.text(max_size=60) | st.text("<>&|`*_[]()!#-+=:.@/\\{}%\"' a1\n", max_size=40))
@settings(max_examples=150)
def test_any_text_comes_back_as_that_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    template = tmp_path_factory.getbasetemp() / "escaped.jinja"
    if not template.exists():
        template.write_text("---\nlicense: mit\n---\n\n| a | b |\n| --- | --- |\n| <em>{{ text }}</em> | c |\n")
    from converter.presentation.card.markdown import one_line

    shown = Shown(render_page(render_card({"text": text}, template), lambda path: path))
    assert " ".join(shown.text.split()) == one_line(text)
    assert shown.elements == []


@pytest.mark.parametrize("count", [1, 3, 5])
def test_backticks_do_not_end_a_block_of_code(count: int) -> None:
    first, *content, last = fence(f"a\n{'`' * count}\nb", "text").splitlines()
    assert content == ["a", "`" * count, "b"]
    assert (first, last) == (f"{last}text", "`" * max(3, count + 1))
