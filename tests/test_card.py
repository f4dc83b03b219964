"""Cards: every figure of the evidence, nothing of anybody else's, and texts that stay texts."""

from __future__ import annotations

import ast
import copy
import hashlib
import html
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from converter import errors
from converter.front_matter import parse_front_matter
from converter.measurement.evidence.origin import grid_text, origin_note
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.presentation.card.environment import render_card
from converter.presentation.card.make_card import CardReport, make_card
from converter.presentation.card.metadata import CardMetadata, GalleryImage
from converter.presentation.card.metadata_rules import MetadataReport, _hub_names, check_metadata
from converter.presentation.card.options import CardOptions
from converter.presentation.card.page import render_page
from converter.presentation.card.preview import write_preview
from converter.presentation.card.release import read_release
from converter.presentation.card.usage import describe_usage
from converter.presentation.charts.chart import Chart
from converter.presentation.charts.draw_charts import prepare_charts
from converter.presentation.visible import one_line, visible
from converter.publication.preflight import examine_release
from converter.rendering import render
from converter.verification.verify import verify
from tests.cases import check_cases
from tests.checkpoints import write_holes
from tests.conftest import Lensconv, edit_json, list_file, names_in, snapshot
from tests.expected import EXPECTED, check_expected
from tests.published import PUBLISHED, published_matrix, published_offload, write_published
from tests.timed_pairs import matrix_over_pairs, over_pairs, pair

UNVERIFIED = CardOptions(repo="owner/Tiny", license="mit", unverified=True)
MANIFEST = "lensconv_manifest.json"
SUMMARY, METRICS, MATRIX, OFFLOAD = (
    *("sdnq_quantization_summary.json", "benchmark_metrics.json"),
    *("comparison_matrix.json", "model_cpu_offload_benchmark.json"),
)
SEQUENTIAL = "sequential_cpu_offload_benchmark.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
MEASURED = json.loads(Path(__file__).with_name("measured.json").read_text("utf-8"))


@pytest.fixture
def release(tiny_release: Path, tmp_path: Path) -> Path:
    """A release that may be changed, made with versions that stay the same."""
    copy = shutil.copytree(tiny_release, tmp_path / "release")
    edit_json(copy / MANIFEST, versions={"lensconv": "1.2.3", "sdnq": "0.2.4", "torch": "2.8.0+cpu"})
    return copy


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The published figures, which contain no sha256."""
    folder = tmp_path / "evidence"
    folder.mkdir()
    return write_published(folder)


def sources(release: Path, digest: str = "") -> dict[str, Any]:
    """What was measured: the weights of a release, or others."""
    digest = digest or hashlib.sha256((release / "transformer" / WEIGHTS).read_bytes()).hexdigest()
    source = {"repo_id": "owner/Source", "transformer": [{"name": WEIGHTS, "bytes": 1, "sha256": digest}]}
    return {"sources": {"original": {**source, "revision": "0123456789" * 4}, "quantized": source}}


def picture(note: str = "") -> bytes:
    """A picture of one pixel, with a note of what it shows."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG", exif=origin_note(note))
    return stream.getvalue()


def measured_in_pairs(number: int) -> dict[str, Any]:
    """The same measurements in files of the second version: this many pairs, one of them measured once more.

    The offload benchmark has two pairs, the sequential one none.
    """
    found: dict[str, Any] = copy.deepcopy(MEASURED)
    busy = {"original": ["other programs used 0.81 *CPUs*"], "quantized": ["the GPU was hot"]}
    pairs = [pair(index, 20.0, 21.0 + index / 10) for index in range(number)]
    pairs[0] = replace(pairs[0], original_s=35.0, used=False, disturbed=busy)
    pairs.append(pair(0, 20.0, 21.2, attempt=1, disturbed={"original": busy["original"]}))
    found[MATRIX] = matrix_over_pairs(found[MATRIX], pairs, ["P01", "P02"])
    found[METRICS]["schema"] = "lensconv.benchmark/2"
    for name, listed in ((OFFLOAD, [pair(0, 18.0, 17.0), pair(1, 18.0, 17.5)]), (SEQUENTIAL, [])):
        del found[name]["warm_slowdown"]
        fields = over_pairs(["P02", "P03"] if listed else [], listed)
        del fields["slowdown"]
        found[name] |= {"schema": "lensconv.offload/2", **fields}
    del found["common"]["settings"]["repeats"]
    found["common"]["settings"] |= {"pairs": number, "timing_prompts": 2}
    return found


def write_measured(release: Path, folder: Path, measured: Mapping[str, Any] = MEASURED) -> None:
    """Write measurements of everything, with images, a grid and charts; some of it goes into the summary."""
    edit_json(release / SUMMARY, **measured["summary"])
    contents = {name: content for name, content in measured.items() if name.endswith(".json")}
    for name, content in contents.items():
        shared = {} if "fidelity" in name else measured["common"]
        contents[name] = {**content, **shared, **sources(release)}
    contents[SUMMARY] = json.loads((release / SUMMARY).read_text())
    pictures = {f"images/quantized/{name}.png": picture() for name in ("P01", "P0 2", "P04")}
    for name in ("preview", "grid_16to9_q98-1of2", "grid_16to9_q98-2of2"):
        pictures[f"assets/comparison/comparison_{name}.webp"] = picture(grid_text(contents["comparison_matrix.json"]))
    charts = [chart for chart in prepare_charts(contents) if isinstance(chart, Chart)]
    for name in ("footprint-dark", "time-light", "time-dark", "fidelity-light"):
        (note,) = [chart.description for chart in charts if name.startswith(chart.name)]
        pictures[f"assets/charts/{name}.png"] = picture(note)
    for name in ("assets/charts/time-light.svg", "assets/comparison/comparison_grid_1to1_q90.webp"):
        pictures[name] = b"of no use to the card"
    encoded = {name: json.dumps(content).encode() for name, content in contents.items()}
    for path, content in (pictures | encoded).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def compact(release: Path, report: CardReport, repo: str, *settings: object) -> str:
    """A card and the report of it, each section in a line, without what checksums and programs say."""
    text = (release / "README.md").read_text()
    manifest = json.loads((release / MANIFEST).read_text())
    sources = [file for component in manifest["components"] for file in component["source"]["files"]]
    for key, files in (("sha256", manifest["files"]), ("header_sha256", sources)):
        for file in files:
            start = f"`{file['name']}` | {file['bytes']:,} |"
            text = text.replace(f"{start} `{file[key]}` |", f"{start} its {key} |")
    keys = ("negative_prompt", "base_resolution", "aspect_ratio", "num_inference_steps", "guidance_scale")
    values = {key: json.dumps(value) for key, value in zip(keys, settings, strict=True) if value is not None}
    text = text.replace(render("usage.md.jinja", repository=repo, arguments=values), f"programs: {repo} {values}\n")
    listed = {file["name"]: file for file in manifest["files"]}
    found = {**report.to_dict(), "card": report.card.name}
    assert all(listed[file["name"]] == file for file in found["files"])
    found["files"] = [file["name"] for file in found["files"]]
    found["left_out"] = {entry["section"]: entry["reason"] for entry in found["left_out"]}
    blocks = [*text.strip().split("\n## "), "\n".join(f"{key}: {json.dumps(value)}" for key, value in found.items())]
    return "".join(block.replace("\n", "¶") + "\n" for block in blocks)


def make_measured(release: Path, folder: Path) -> CardReport:
    write_measured(release, folder)
    options = CardOptions(license="apache-2.0", languages=("en", "de"), tags=("mine", "sdnq", "1e3"))
    return make_card(release, folder, options)


def make_bare(release: Path, folder: Path) -> CardReport:  # noqa: ARG001 - as the others
    edit_json(release / MANIFEST, versions={"lensconv": "1.2.3", "sdnq": "0.2.4+local", "torch": "unknown"})
    (release / "text_encoder" / "config.json").unlink()
    return make_card(release, options=CardOptions(base_revision="f" * 40))


def make_slower(release: Path, folder: Path) -> CardReport:
    edit_json(release / "model_index.json", safety_checker=[None, None])  # The pipeline does without it.
    edit_json(release / "text_encoder" / "config.json", quantization_config={"quant_method": "mxfp4"})
    config = json.loads((release / "transformer" / "quantization_config.json").read_text())
    names = config["modules_to_not_convert"]
    names[names.index("*.txt_mod.*")] = "txt_mod"
    config["use_dynamic_quantization"] = True
    (release / "transformer" / "quantization_config.json").write_text(json.dumps(config))
    edit_json(release / "transformer" / "config.json", quantization_config=config)
    matrix = {**published_matrix(), "prompts": published_matrix()["prompts"][:2]}
    # A prompt of a built-in suite; and what is not an image in the folder of images, which is not shown.
    matrix["prompts"][0] |= {"scenario": "Night Ferry Terminal"}
    (folder / "images" / "quantized").mkdir(parents=True)
    for row, start in zip(matrix["prompts"], ("", "images/quantized/../../"), strict=True):
        row["quantized"] |= {"image": f"{start}model_cpu_offload_benchmark.json"}
    offload = {**published_offload(), "warm_prompts": ["P02"]}
    offload["environment"] = MEASURED["common"]["environment"]
    offload["warm_slowdown"] = {"pairs": 1, "ratio_of_means_percent": 0.0, "mean_difference_s": 0.0}
    for name, content in (("comparison_matrix.json", matrix), ("model_cpu_offload_benchmark.json", offload)):
        (folder / name).write_text(json.dumps(content | sources(release)))
    options = CardOptions(repo="owner/Slower", base_model="some/Base", base_revision="f" * 40, license="brand-new-1.0")
    return make_card(release, folder, options)


def make_pairs(release: Path, folder: Path) -> CardReport:
    write_measured(release, folder, measured_in_pairs(4))
    return make_card(release, folder, CardOptions(license="apache-2.0", languages=("en", "de")))


def make_published(release: Path, folder: Path) -> CardReport:
    return make_card(release, write_published(folder), UNVERIFIED)


def test_a_card_as_a_whole(release: Path, tmp_path: Path) -> None:
    report = make_measured(release, tmp_path / "evidence")
    check_expected("card.md", compact(release, report, "release", "fog", 1024, "16:9", 4, 1.5))


@pytest.mark.parametrize(
    ("make", "repo", "settings"),
    [
        (make_published, "owner/Tiny", (None, 1440, "1:1", 20, 5.0)),
        (make_bare, "release", (None, 1440, "1:1", 20, 5.0)),
        (make_slower, "owner/Slower", (None, 1440, "1:1", 20, 5.0)),
        (make_pairs, "release", ("fog", 1024, "16:9", 4, 1.5)),
    ],
)
def test_other_cards(
    make: Callable[[Path, Path], CardReport], repo: str, settings: Sequence[object], release: Path, tmp_path: Path
) -> None:
    """What the card above does not have."""
    (tmp_path / "evidence").mkdir()
    report = make(release, tmp_path / "evidence")
    known = (EXPECTED / "card.md").read_text("utf-8").splitlines()
    found = compact(release, report, repo, *settings).splitlines()
    check_expected(f"card_{make.__name__[5:]}.md", "".join(f"{line}\n" for line in found if line not in known))


def test_a_card_from_a_template_of_ones_own(release: Path, tmp_path: Path) -> None:
    """It may use what the built-in one does not."""
    values = "{{ license }} {{ figures.source_bytes }} {{ figures.loaded_bytes }} {{ figures.bytes_by_dtype | length }}"
    (tmp_path / "mine.jinja").write_text(f"---\nlicense: mit\n---\n{values}")
    make_card(release, options=CardOptions(license="apache-2.0", template=tmp_path / "mine.jinja"))
    assert (release / "README.md").read_text() == "---\nlicense: mit\n---\napache-2.0 22349824 11174912 2\n"


def test_what_the_command_says_of_a_card(
    release: Path, published: Path, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    line, page = ("card", release, "--evidence", published, "--unverified"), ("--preview", published / "page.html")
    shown = lensconv(*line, *page).stderr.replace(str(release.parent), "")
    check_expected("card_command.txt", f"{' | '.join(map(str.rstrip, shown.splitlines()))}\n")
    assert [lensconv(*line, *more, "--json").result["preview"] for more in ((), page)] == [None, str(page[1])]


def test_a_card_of_one_component_has_no_programs(lens_output: Path, tmp_path: Path) -> None:
    component = Path(shutil.copytree(lens_output, tmp_path / "component"))
    assert "usage" in make_card(component, options=CardOptions(license="mit")).left_out
    text = (component / "README.md").read_text()
    assert "from_pretrained(" not in text
    assert "| Quantized component | the model (LensTransformer2DModel) |" in text


def test_a_card_of_another_model_has_nothing_of_lens(release: Path) -> None:
    edit_json(release / "transformer" / "config.json", _class_name="OtherModel")
    assert "usage" in make_card(release / "vae" / "..").left_out
    text = (release / "README.md").read_text()
    assert "\n# release\n" in text
    assert "40 modules of OtherModel are" in text
    of_lens = ("\n- lens\n", "modulation layers", "| norms |", "from_pretrained(")
    assert not [words for words in of_lens if words in text]


_STEPS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.5}
_QWEN: dict[str, Any] = {"pipeline": "QwenImagePipeline", "guidance_argument": "true_cfg_scale", **_STEPS}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"base_resolution": 1440, "aspect_ratio": "1:1", "num_inference_steps": 20, "guidance_scale": 5.0}),
        ({**_STEPS, "base_resolution": None, "aspect_ratio": None, "height": 64, "width": 48, "negative_prompt": "`"},
         {"negative_prompt": "`", "height": 64, "width": 48, **_STEPS}),
        ({**_STEPS, "base_resolution": 1024, "aspect_ratio": "16:9", "height": 736, "width": 1312},
         {"base_resolution": 1024, "aspect_ratio": "16:9", **_STEPS}),
        ({**_QWEN, "height": 64, "width": 48, "max_sequence_length": 512, "negative_prompt": ""},
         {"negative_prompt": "", "height": 64, "width": 48, "num_inference_steps": 4, "true_cfg_scale": 1.5,
          "max_sequence_length": 512}),
        ({**_QWEN, "guidance_argument": "guidance_scale", "negative_prompt": 'a "b"', "max_sequence_length": None},
         {"negative_prompt": 'a "b"', **_STEPS}),
        ({**_QWEN, "guidance_argument": "", "fixed_size": True, "height": 64, "width": 48},
         {"num_inference_steps": 4}),
    ],
)  # fmt: skip
def test_programs_draw_as_the_measured_images_were_drawn(
    settings: dict[str, Any], expected: dict[str, Any], release: Path
) -> None:
    if "pipeline" in settings:
        edit_json(release / "transformer" / "config.json", _class_name="QwenImageTransformer2DModel")
        edit_json(release / "model_index.json", _class_name="QwenImagePipeline")
    programs = re.findall(
        r"```python\n(.*?)```", str(describe_usage(read_release(release), "a/b", settings)), re.DOTALL
    )
    nodes = (node for program in programs for node in ast.walk(ast.parse(program)))
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "pipe"]
    assert len(calls) == len(programs) == (1 if "pipeline" in settings else 2)
    for call in calls:
        (_, *found, last) = call.keywords
        assert (last.arg, {word.arg: ast.literal_eval(word.value) for word in found}) == ("generator", expected)


def refuse(
    error: type[Exception], reason: str, release: Path, folder: Path | None = None, options: CardOptions | None = None
) -> str:
    """Make no card: the release stays as it is; gives the hint."""
    before = snapshot(release)
    with pytest.raises(error) as caught:
        make_card(release, folder, options)
    assert str(caught.value).replace(str(release.parent), "") == reason
    assert snapshot(release) == before
    return str(getattr(caught.value, "hint", ""))


def test_figures_without_a_checksum_are_taken_only_when_asked_for(release: Path, published: Path) -> None:
    differs = "differs from the summary in the release, so it was made from other weights"
    refuse(errors.EvidenceError, f"/evidence/{SUMMARY}: {differs}", release, published)
    (published / SUMMARY).unlink()
    lacks = "contains no sha256 of the weights that it was made from"
    hint = refuse(errors.EvidenceError, f"/evidence/benchmark_metrics.json: {lacks}", release, published)
    nothing = f"/release/vae: contains no measurements, such as {METRICS}"
    refuse(errors.MissingInput, nothing, release, release / "vae")
    assert hint == "Measure again with `lensconv bench`, or accept unverified figures with --unverified."


def test_measurements_of_other_weights_are_stale(release: Path, published: Path) -> None:
    (published / "comparison_matrix.json").write_text(json.dumps(published_matrix() | sources(release, "0" * 64)))
    stale = "is stale: the sha256 of the weights that were measured is not that of the release's weights"
    refuse(errors.EvidenceError, f"/evidence/comparison_matrix.json: {stale}", release, published, UNVERIFIED)


def test_pictures_of_other_measurements_are_stale(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    write_measured(release, folder)
    reason = "was made from other measurements than those in its folder"
    for path, name in (("charts/time-dark.png", "charts"), ("comparison/comparison_preview.webp", "grid")):
        (folder / "assets" / path).write_bytes(picture("other measurements"))
        hint = refuse(errors.EvidenceError, f"/evidence/assets/{path}: {reason}", release, folder)
        assert hint == f"Make it again with `lensconv {name}`."
    # Nor is one shown whose measurements are gone.
    (folder / "comparison_matrix.json").unlink()
    path = "comparison/comparison_grid_16to9_q98-1of2.webp"
    refuse(errors.EvidenceError, f"/evidence/assets/{path}: {reason}", release, folder)


def test_what_is_elsewhere_is_not_taken_along(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    write_measured(release, folder)
    image = folder / "images/quantized/P01.png"
    image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    reason = "is a link to a file outside of the folder"
    refuse(errors.EvidenceError, "/evidence/images/quantized/P01.png: " + reason, release, folder)
    listed = json.loads((release / MANIFEST).read_text())["files"]
    entry = {"name": "comparison_matrix.json", "bytes": 1, "sha256": "0" * 64}
    edit_json(release / MANIFEST, files=[*listed, entry])
    image.unlink()
    refuse(errors.OutputError, "comparison_matrix.json: `convert` wrote another file of that name", release, folder)


def test_prompts_of_the_suite_that_was_drawn_are_shown_in_full(release: Path, published: Path, tmp_path: Path) -> None:
    facts = [(row["id"], row["scenario"], row["seed"]) for row in published_matrix()["prompts"]]
    prompts = tuple(SuitePrompt(*fact, f"A sign of {fact[1]}.", ()) for fact in facts)
    suite = tmp_path / "suite.toml"
    suite.write_text(PromptSuite("drawn", prompts).to_toml())
    options = replace(UNVERIFIED, prompts=str(suite))
    assert "prompts" not in make_card(release, published, options).left_out
    text = (release / "README.md").read_text()
    assert all(f"### {prompt.id} · {prompt.scenario}\n\n{prompt.prompt}\n" in text for prompt in prompts)
    suite.write_text(PromptSuite("other", (*prompts[:9], replace(prompts[9], seed=7))).to_toml())
    reason = "comparison_matrix.json: prompt P10, seed 310, differs from the suite /suite.toml"
    refuse(errors.EvidenceError, reason, release, published, options)
    with pytest.raises(errors.SuiteError):
        make_card(release, published, replace(UNVERIFIED, prompts="no-such-suite"))


def test_what_a_card_says_of_times_alone(release: Path, published: Path) -> None:
    """Of files of the first version, drawn without guidance; then of images with offloading alone."""

    def text_of(folder: Path) -> str:
        make_card(release, folder, UNVERIFIED)
        return (release / "README.md").read_text()

    for name in ("benchmark_metrics.json", SUMMARY):
        (published / name).unlink()
    rows = [row | {"quantized": {"time_s": row["original"]["time_s"] * 0.9}} for row in published_matrix()["prompts"]]
    content = published_matrix() | {"prompts": rows, "environment": MEASURED["common"]["environment"]}
    content |= {"settings": {"num_inference_steps": 4, "guidance_scale": 0.0}}
    (published / "comparison_matrix.json").write_text(json.dumps(content))
    text = text_of(published)
    assert (
        "- **Time:** Time of an image, quantized / original: 0.900, over 10 prompts of one run of each model." in text
    )
    assert "guidance_scale=0.0,\n" in text
    assert "Measured with these versions:" in text
    (published / "comparison_matrix.json").unlink()
    text = text_of(published)
    assert "The warm images follow: P02 to P10." in text
    assert "model\\_cpu\\_offload\\_benchmark.json contains no sha256" in text
    assert "*These figures are unverified: they come without a sha256 of the weights.*" in text
    for name in ("model_cpu_offload_benchmark.json", "comparison_matrix.json", "benchmark_metrics.json"):
        shutil.rmtree(published)
        published.mkdir()
        (published / name).write_text(json.dumps(PUBLISHED[name]()))
        text = text_of(published)
        assert "Fidelity of images was not measured." in text
        assert "Time and memory were not measured." not in text


#: What claims a difference of times, or shows a percentage that is not one of sizes.
CLAIM = re.compile(r"slow|fast|quick|speed|(more|less) time|[0-9] ?%(?! (smaller|less than (the|whole)))|percent")


@pytest.mark.parametrize("number", [1, 2])
def test_with_fewer_than_three_pairs_nothing_is_claimed(
    number: int, release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    """Neither in files nor in tables, charts, the card or JSON."""
    folder = tmp_path / "evidence"
    measured = measured_in_pairs(number)
    write_measured(release, folder, measured)
    make_card(release, folder)
    _, *sections = (release / "README.md").read_text().split("\n## ")
    texts = [section for section in sections if section.startswith(("Prompt by prompt", "CPU offload", "Benchmark"))]
    assert len(texts) == 3
    texts += [line for line in (release / "README.md").read_text().splitlines() if line.startswith("- **Time:**")]
    texts += [
        chart.description for chart in prepare_charts(measured) if chart.name == "time" and isinstance(chart, Chart)
    ]
    for name in (MATRIX, OFFLOAD, SEQUENTIAL):
        texts += [lensconv("evidence", folder / name).stderr, (folder / name).read_text()]
    texts.append(json.dumps(lensconv("evidence", folder, "--json").result["matrix"]))
    assert [found for text in texts if (found := CLAIM.search(text))] == []
    assert len([text for text in texts if "quantized / original" in text.lower()]) > 4
    # With three, the same places claim a difference.
    write_measured(release, folder, measured_in_pairs(3))
    make_card(release, folder)
    assert re.search(r"\*\*Time:\*\* With the .*more time.*not time\.", (release / "README.md").read_text())


def test_what_cannot_be_seen_is_written_out() -> None:
    """Both ends of each range of characters, and surrogates; joiners, which many languages need, stay."""
    signs = "\0\x9f\ud800\u0378\xad\u061c\u180e\u200b\u200e\u200f\u202a\u202e\u2060\u2064\u2066\u206f"
    signs += "\ufeff\ufff9\ufffb\U000e0000\U000e007f"
    assert visible(f"\u200c{signs}\u200d") == "\u200c" + ascii(signs)[1:-1] + "\u200d"


def test_texts_that_look_like_numbers_are_in_quotes() -> None:
    gallery = (GalleryImage("12e4", "images/quantized/a%41.png"),)
    tags = ("1e3", "08", "0o17", ".5", "v1", "no", "v1")
    text = CardMetadata("mit", "a\nb", "c", None, "d", "diffusers", "text-to-image", ("en",), tags, gallery).to_yaml()
    # YAML 1.2 has other numbers than YAML 1.1, which PyYAML writes.
    shown = "---|language:|- en|library_name: diffusers|license: mit|license_name: a b|license_link: c|"
    shown += "pipeline_tag: text-to-image|tags:|- '1e3'|- '08'|- '0o17'|- '.5'|- v1|- 'no'|widget:|- text: '12e4'|"
    assert text.replace("\n", "|") == shown + "  output:|    url: images/quantized/a%2541.png|---|"
    assert parse_front_matter(text)[0]["tags"] == [*tags[:-1]]


def test_what_is_said_of_front_matter() -> None:
    """The kept file has a case a line, and behind it the errors; what only may be wrong has a question mark."""
    lines = []
    for line in (EXPECTED / "metadata.txt").read_text("utf-8").splitlines():
        front = line.partition(" =>")[0]
        # The longest name of a repo has 96 characters, the longest tag 100.
        card = front.encode().decode("unicode_escape") if "---" in front else f"---\n{front}\n---\n# Card\n"
        report = check_metadata(card.replace("; ", "\n").replace("LIMIT", "a" * 94))
        if not report.errors:
            # What is accepted can be read by the Hub's client.
            ModelCard(card.replace("; ", "\n").replace("LIMIT", "a" * 94))
        found = "; ".join([*report.errors, *(f"? {warning}" for warning in report.warnings)])
        lines.append(f"{front} => {found}".rstrip() + "\n")
    check_expected("metadata.txt", "".join(lines))
    counts = {key: len({*names}) for key, names in _hub_names().items()}
    assert counts == {"license": 82, "pipeline_tag": 59, "language": 186}
    longest = {"]".ljust(10**6): "not YAML in", "]".ljust(10**6 + 1): "longer than 1000000 c"}
    # Each line refers ten times to the one before it, or merges it twice.
    lists = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 20))
    merged = "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
    longest |= {f"a0: &a0 {{b: {'c' * 99}}}\n{more}": "not YAML in" for more in (lists, merged)}
    longest |= {"a: &a " + "b" * 10**5 + f"\nc: [{'*a, ' * count}]": "not YAML in" for count in (31,)}
    assert check_metadata("---\na: &a " + "b" * 10**5 + f"\nc: [{'*a, ' * 28}]\n---\n") == MetadataReport()
    for front, said in {"[" * 999: "not YAML: maximum recursion", **longest}.items():
        assert check_metadata(f"---\n{front}\n---\n").errors[0].startswith(f"its front matter is {said}")


def test_names_that_the_hub_may_know_are_warned_of(release: Path, lensconv: Lensconv) -> None:
    warning = "license brand-new-1.0 is not known to lensconv; the Hub decides whether it is valid"
    make_card(release, options=CardOptions(license="brand-new-1.0"))
    assert make_card(release, options=CardOptions(adopt=True)).warnings == (warning,)
    assert f"README.md: {warning}" in examine_release(release, "owner/Tiny").advice
    assert warning in lensconv("card", release, "--adopt").stderr


def test_the_card_is_listed_and_the_release_fit_to_be_published(release: Path, published: Path) -> None:
    make_card(release, published, UNVERIFIED)
    first = snapshot(release)
    assert verify(release, checksums=True).ok
    assert {file.name for file in examine_release(release, "owner/Tiny").files} == {*first}
    with pytest.raises(errors.ReleaseError, match="tells people to load owner/Tiny"):
        examine_release(release, "owner/Other")
    shutil.rmtree(release / ".lensconv")
    card, elsewhere = release / "README.md", published.with_name("README.md")
    card.rename(elsewhere)
    card.symlink_to(elsewhere)
    make_card(release, published, UNVERIFIED)
    assert not card.is_symlink()
    assert snapshot(release) == first
    # Without the measurements they leave the release again, those that are gone already, too.
    (release / "benchmark_metrics.json").unlink()
    (published / "comparison_matrix.json").unlink()
    make_card(release, published, UNVERIFIED)
    assert names_in(release) == sorted({name.partition("/")[0] for name in first} - {"comparison_matrix.json"})
    for name in ("benchmark_metrics.json", "model_cpu_offload_benchmark.json"):
        (release / name).unlink()
    make_card(release)
    assert not {"benchmark_metrics.json", "model_cpu_offload_benchmark.json"} & {*names_in(release)}
    assert verify(release, checksums=True).ok


def test_a_card_written_by_hand_is_kept_and_adopted(release: Path, published: Path) -> None:
    card, reason = release / "README.md", "/release/README.md: was written by hand, and would be lost"
    card.write_text("Not listed yet.\n")
    refuse(errors.ReleaseError, reason, release)
    card.unlink()
    made = make_card(release, published, UNVERIFIED)
    card.write_text(card.read_text() + "\nOne more line.\n")
    before = snapshot(release)
    hint = refuse(errors.ReleaseError, reason, release, published, UNVERIFIED)
    assert hint == "Keep it and list it with --adopt, or move it away and run the command again."
    report = make_card(release, options=CardOptions(adopt=True))
    listed = json.loads((release / MANIFEST).read_text())
    assert {**before, MANIFEST: b""} == {**snapshot(release), MANIFEST: b""}
    assert [file.name for file in report.files] == [file.name for file in made.files]
    assert (report.card, report.sections, report.left_out, report.verified) == (card, (), {}, False)
    assert listed["card"] == {**json.loads(before[MANIFEST])["card"], "files": listed["card"]["files"]}
    assert verify(release, checksums=True).ok
    (release / "benchmark_metrics.json").unlink()
    kept = make_card(release, options=CardOptions(adopt=True, repo="owner/Other")).files
    assert [file.name for file in kept] == [file.name for file in made.files if "metrics" not in file.name]
    examine_release(release, "owner/Other")
    lacks = "it has no front matter, which begins and ends with a line of three dashes"
    for content, error, reason in (
        (b"no front matter", errors.ReleaseError, lacks),
        (b"\xff", errors.ReleaseError, "is not UTF-8"),
        (None, errors.MissingInput, "No such file or directory"),
    ):
        card.unlink() if content is None else card.write_bytes(content)
        refuse(error, f"/release/README.md: {reason}", release, options=CardOptions(adopt=True))


def test_options_that_make_no_sense(release: Path) -> None:
    def reason(options: dict[str, Any]) -> str:
        with pytest.raises(errors.UsageError) as caught:
            make_card(release, options=replace(UNVERIFIED, **options))
        return str(caught.value)

    before = snapshot(release)
    check_cases("card_options.jsonl", reason)
    assert snapshot(release) == before


def test_a_license_that_the_hub_does_not_list(release: Path, lensconv: Lensconv) -> None:
    """Its text is that of a file of the release, unless an address is given."""

    def link(*options: str) -> str:
        done = lensconv("card", release, "--license=other", "--license-name=my-1.0", *options)
        if done.code:
            return done.stderr.strip()
        found = examine_release(release, "owner/Tiny")
        front, _ = parse_front_matter((release / "README.md").read_text())
        assert (front["license"], front["license_name"]) == ("other", "my-1.0")
        return f"{front['license_link']}{'; '.join(['', *found.advice])}"

    assert link("--license-link=https://a.b/c") == "https://a.b/c"
    missing = "README.md: license_link LICENSE: the release has no such file; the repo must have it"
    assert link("--license-link=LICENSE") == f"LICENSE; {missing}"
    refused = "error: {} is neither an https address nor LICENSE or LICENSE.md of the repo. Correct it and try again."
    assert link("--license-link=a/b") == refused.format(f"{release / 'README.md'}: license_link a/b")
    list_file(release, "LICENSE-A.txt", b"a")
    assert "needs --repo, to link to LICENSE-A.txt. Or give" in link()
    assert link("--repo=owner/Tiny") == "https://huggingface.co/owner/Tiny/blob/main/LICENSE-A.txt"
    for name in ("LICENSE.md", "LICENSE"):
        list_file(release, name, b"a")
        assert link() == name


def test_pictures_that_a_card_shows_are_in_the_release(release: Path) -> None:
    shown = ("images/a%20b.png", "https://a.b/c.png", "b.png")
    entries = "".join(f"- text: a\n  output:\n    url: {url}\n" for url in shown)
    (release / "images").mkdir()
    list_file(release, "images/a b.png", b"")
    (release / "README.md").write_text(f"---\nlicense: mit\nwidget:\n{entries}---\n")
    missing = "widget: entry 3 shows b.png, which is not a file of the release"
    assert make_card(release, options=CardOptions(adopt=True)).warnings == (missing,)


def spoil(name: str, old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda release: (release / name).write_bytes((release / name).read_bytes().replace(old, new, 1))


WEIGHTS_FILE = f"transformer/{WEIGHTS}"
ONE, PLAIN = [("F32", "a", (1,))], ": no module in it is quantized"
DIFFERS = f"differs from the file in {MANIFEST}"
DISAGREE = "config.json and quantization_config.json disagree on weights_dtype"


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (shutil.rmtree, errors.MissingInput, ": no such folder"),
        (lambda release: (release / MANIFEST).unlink(), errors.MissingInput, f": has no {MANIFEST}"),
        (spoil(WEIGHTS_FILE, b"pt", b"px"), errors.MalformedCheckpoint, f"/{WEIGHTS_FILE}: {DIFFERS}"),
        (spoil("transformer/config.json", b'"uint4"', b'"int4"'), errors.MalformedCheckpoint, f": config: {DISAGREE}"),
        (spoil(MANIFEST, b" 6109056", b" 6109057"), errors.MalformedCheckpoint, f"/{WEIGHTS_FILE}: {DIFFERS}"),
        (
            spoil(MANIFEST, WEIGHTS_FILE.encode(), b"transformer/x"),
            errors.MalformedCheckpoint,
            f"/{WEIGHTS_FILE}: {DIFFERS}",
        ),
        (lambda release: write_holes(release / WEIGHTS_FILE, ONE), errors.UnsupportedCheckpoint, PLAIN),
    ],
)
def test_what_is_no_release_has_no_card(change: Any, error: type[Exception], reason: str, release: Path) -> None:
    change(release)
    refuse(error, f"/release{reason}", release)


def test_a_preview_holds_the_pictures_of_the_release(release: Path, tmp_path: Path) -> None:
    (release / "a b.png").write_bytes(b"picture")
    (release / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "outside.png").write_bytes(b"outside")
    for name, size in (("fits.png", 20_000_000), ("large.png", 20_000_001)):
        with (release / name).open("wb") as stream:
            stream.truncate(size)
    paths = ("a%20b.png", "missing.png", "model_index.json", "../outside.png", "link.png", "large.png", "fits.png")
    (release / "README.md").write_text(" ".join(f"![a]({path})" for path in paths))
    write_preview(release, tmp_path / "page.html")
    shown = re.findall('src="([^"]*)"', (tmp_path / "page.html").read_text())
    assert shown.pop() == f"data:image/png;base64,{'A' * 26_666_667}="
    assert shown == ["data:image/png;base64,cGljdHVyZQ==", *paths[1:-1]]


def test_all_that_a_template_may_use_and_how_it_fails(tmp_path: Path) -> None:
    (tmp_path / "part.jinja").write_text("\n{{ 1 / 0 }}")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "part.jinja").touch()

    def outcome(name: str, text: str, times: int) -> str:
        (tmp_path / name).write_bytes(text.encode("latin-1") * times)
        try:
            return render_card({}, tmp_path / name)
        except errors.InputError as error:
            # Versions of Python say differently where the depth was exceeded.
            return str(error).replace(f"{tmp_path}/", "").partition(" while ")[0]

    check_cases("templates.jsonl", outcome)
    with pytest.raises(errors.MissingInput, match=r"gone\.jinja: no such file"):
        render_card({}, tmp_path / "gone.jinja")


@given(st.text(max_size=60) | st.text("<>&|`*_[]()!#-+=:.@/\\{}%\"' a1\n", max_size=40))
@settings(max_examples=150)
def test_any_text_comes_back_as_that_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    template = tmp_path_factory.getbasetemp() / "escaped.jinja"
    if not template.exists():
        template.write_text("---\nlicense: mit\n---\n\n| a | b |\n| --- | --- |\n| <em>{{ text }}</em> | c |\n")
    page = render_page(render_card({"text": text}, template), lambda path: path)
    shown = page.partition("<td><em>")[2].partition("</em></td>")[0]
    assert "<" not in shown
    assert " ".join(html.unescape(shown).split()) == one_line(text)
