"""Hostile texts in a card, all the way into a browser: they are shown, run nothing, ask for nothing, break nothing."""

from __future__ import annotations

import ast
import hashlib
import html
import io
import json
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from converter.front_matter import split_card
from converter.hub.addresses import is_repo_id
from converter.measurement.evidence.names import MODELS
from converter.measurement.evidence.origin import grid_text, origin_note
from converter.presentation.card.markdown import image, link
from converter.presentation.card.metadata import CardMetadata
from converter.presentation.card.metadata_rules import MetadataReport, check_metadata
from converter.presentation.card.page import render_content, render_page
from converter.presentation.card.page_style import STYLE
from converter.presentation.charts.chart import Chart
from converter.presentation.charts.draw_charts import prepare_charts
from tests.browser import look_at, needs_browser, running_site
from tests.conftest import Lensconv, call
from tests.expected import EXPECTED, check_expected
from tests.published import image_fidelity, image_pair

#: Sets a mark in the window that a script runs in, or in the one around its frame.
_RUN = "window.ran=1"
_TEXTS: list[list[str]] = json.loads(Path(__file__).with_name("hostile.json").read_text("utf-8"))
#: What somebody may write into a prompt, a name or a version. Hosts below ``.example`` lead to the test.
_HOSTILE = tuple(text for text, *_ in _TEXTS)
#: Hosts and paths that are asked for where these texts are taken for Markdown.
_ASKED_FOR = (("image", "i"), ("markdown", "pixel.png"), ("alternative", ""), ("frame", ""))
#: How those are shown that hold what nobody would see.
_SHOWN = {text: shown for text, *others in _TEXTS for shown in others}
_COUNT = len(_HOSTILE)
#: Facts of the environment whose values are fixed by their format.
_FIXED = ("date", "int8_kernel", "mxfp4")
assert len(set(_HOSTILE)) == _COUNT >= 40
_SUMMARY = "sdnq_quantization_summary.json"
_SHA256 = re.compile("[0-9a-f]{64}")
#: Without a name of a repo, a card is called after its folder.
_FOLDER = f"\"'<img src=x onerror={_RUN}> | `[a](b)` ``` {{{{ x }}}} <!-- *"
_METADATA = CardMetadata("mit", None, None, "o/n", None, "diffusers", "text-to-image", ("en",), ("sdnq",), ())
#: What a page is asked in the browser; ``innerText`` is what people see.
_PROBE = """
const seen = element => element.innerText.split(/\\s+/).filter(Boolean).join(' ');
const all = (selector, give) => [...page.querySelectorAll(selector)].map(give);
return {
  ran: frame.ran === 1,
  title: page.title,
  elements: [...new Set(all('body *', element => element.localName))].sort(),
  handlers: all('*', element => [...element.attributes].filter(a => /^on|^style$/i.test(a.name)).length)
    .reduce((sum, count) => sum + count, 0),
  addresses: all('a', element => element.getAttribute('href')),
  broken: all('img', element => element).filter(image => !image.naturalWidth).map(image => image.src.slice(0, 80)),
  images: all('img', image => image.alt),
  tables: all('article table', table => [...table.rows].map(row => [...row.cells].map(seen))),
  headings: all('h1, h2, h3', seen),
  paragraphs: all('article > p', seen),
  points: all('article li', seen),
  captions: all('figcaption', element => element.textContent),
  blocks: all('pre', element => element.textContent),
  styled: frame.getComputedStyle(page.querySelector('main') || page.body).maxWidth,
  wide: page.documentElement.scrollWidth - page.documentElement.clientWidth,
};
"""


def shown(text: str) -> str:
    """What people see of a text, in one line."""
    return " ".join(_SHOWN.get(text, text).split())


def squeezed(texts: Iterable[str]) -> list[str]:
    """Texts without white space, which differs where lines are broken."""
    return ["".join(text.split()) for text in texts]


def hostile_text(place: str, number: int) -> str:
    """A text of the corpus; each place begins with another one."""
    text = _HOSTILE[(number + zlib.crc32(place.encode())) % _COUNT]
    if place.startswith("file"):
        # What no name of a file has, and a length that all file systems take.
        return re.sub(r"[/\\\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "_", text)[:60]
    return text


def harmless_text(place: str, number: int) -> str:
    """A text that names its place."""
    return f"text{number}of{place}end"


def translated(harmless: str) -> str:
    """What stands in the hostile card where this stands in the harmless one."""

    def replaced(found: re.Match[str]) -> str:
        text = shown(hostile_text(found[2], int(found[1])))
        return text if found[2] != "reason" or len(text) <= 300 else f"{text[:299]}…"

    return re.sub(r"text([0-9]+)of([a-z]+?)end", replaced, harmless.replace("folder", shown(_FOLDER)))


Text = Callable[[str, int], str]


def each(text: Text, place: str) -> list[str]:
    """All texts for a place."""
    return [text(place, number) for number in range(_COUNT)]


_STREAM = io.BytesIO()
Image.new("L", (1, 1)).save(_STREAM, "PNG")
#: A PNG of one pixel.
_PICTURE = _STREAM.getvalue()


def spread(value: float) -> dict[str, float]:
    """Statistics of figures that are all the same."""
    return {"mean": value, "median": value, "min": value, "max": value, "count": _COUNT}


def write_release(source: Path, release: Path, text: Text) -> str:
    """Copy a release, with texts in what its manifest and its configs say; gives the sha256 of its weights."""
    shutil.copytree(source, release)
    manifest = json.loads((release / "lensconv_manifest.json").read_text())
    manifest["versions"] |= {text("versionname", n): text("version", n) for n in range(_COUNT)}
    manifest["versions"] |= {"sdnq": text("sdnq", 0), "torch": text("torch", 0), "lensconv": text("lensconv", 0)}
    (component,) = manifest["components"]
    component["recipe"] |= {
        "name": text("recipe", 0),
        "seed": text("seed", 0),
        "quantize_from": text("quantizefrom", 0),
    }
    component["source"]["files"] = [
        {"name": name, "bytes": 1, "header_sha256": text("header", number)}
        for number, name in enumerate(each(text, "source"))
    ]
    component["source"]["bytes_by_dtype"][f"Z{text('dtype', 0)}"] = 0
    (release / "lensconv_manifest.json").write_text(json.dumps(manifest))
    index = json.loads((release / "model_index.json").read_text())
    index |= {text("filecomponent", n): ["diffusers", text("class", n)] for n in range(_COUNT)}
    (release / "model_index.json").write_text(json.dumps(index))
    config = json.loads((release / "text_encoder" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": text("quantmethod", 0)}
    (release / "text_encoder" / "config.json").write_text(json.dumps(config))
    return hashlib.sha256((release / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()


def write_evidence(folder: Path, sha256: str, text: Text) -> None:
    """Write measurements of a release and pictures, with texts wherever their formats take some."""
    files = [{"name": "diffusion_pytorch_model.safetensors", "bytes": 1, "sha256": sha256}]
    source = {"repo_id": text("repo", 0), "revision": None, "transformer": files}
    sources = {"original": source, "quantized": source}
    contents = json.loads(Path(__file__).with_name("measured.json").read_text("utf-8"))
    del contents["sequential_cpu_offload_benchmark.json"], contents["summary"]
    common = {**contents.pop("common"), "sources": sources}
    common["settings"] |= {"aspect_ratio": text("aspectratio", 0), "dtype": text("dtype", 0)}
    for name, value in common["environment"].items():
        if isinstance(value, str) and name not in _FIXED:
            common["environment"][name] = text(f"environment{name}", 0)
    common["environment"]["sdnq_environment"] = {text("variable", 0): text("variablevalue", 0)}
    ids = each(text, "id")
    rows: list[dict[str, Any]] = []
    for number, identity in enumerate(ids):
        image = f"images/quantized/{number} {text('fileimage', number)}.png"
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(_PICTURE)
        side: dict[str, Any] = {"time_s": 1.5, "peak_allocated_gb": 2.5}
        rows.append(
            {"id": identity, "scenario": text("scenario", number), "seed": number}
            | {"prompt": text("prompt", number)}
            | {"original": side if number % 2 else {"failed": text("reason", number)}}
            | {"quantized": {**side, "image": image, "image_sha256": hashlib.sha256(_PICTURE).hexdigest()}}
        )
    metrics, offload = contents["benchmark_metrics.json"], contents["model_cpu_offload_benchmark.json"]
    for name in MODELS:
        for content in (metrics, offload):
            content["models"][name]["label"] = text(f"label{name}", 0)
        metrics["models"][name] |= {"repo_id": text("modelrepo", 0), "generation_time_s": {"mean": 1.5, "median": 1.5}}
    failed = [{"prompt": text("failedprompt", n), "reason": text("reason", n)} for n in range(_COUNT)]
    metrics["models"]["quantized"]["failed"] = failed
    offload |= {"cold_prompt": ids[0], "warm_prompts": ids[1:]}
    offload["models"]["original"]["setup"] = {"failed": text("reason", 3)}
    summary = {"psnr_db": spread(30.0), "ssim": spread(0.5), "periodic_grid_added": spread(0.0)}
    images = image_fidelity([image_pair(identity, number, 30.0, 0.0) for number, identity in enumerate(ids)], summary)
    images |= {
        "methods": {name: text("method", 0) for name in images["methods"]},
        "not_measured": {"lpips": text("lpips", 0), "text": text("text", 0)},
        "num_inference_steps": 4,
    }
    fidelity = contents["weight_fidelity.json"]["fidelity"]
    fidelity["families"] = [{**fidelity["families"][0], "name": name} for name in each(text, "family")]
    contents["comparison_matrix.json"]["prompts"] = rows
    contents["image_fidelity.json"] = images
    for name, content in contents.items():
        content |= {"sources": sources} if "fidelity" in name else common
        (folder / name).write_text(json.dumps(content))
    stored = json.loads((folder / _SUMMARY).read_text())
    write_pictures(folder, contents | {_SUMMARY: stored}, text)


def write_pictures(folder: Path, contents: dict[str, Any], text: Text) -> None:
    """Write a grid and charts that carry the notes of these measurements, and strangers beside them."""
    notes = {
        f"assets/comparison/comparison_{name}.webp": grid_text(contents["comparison_matrix.json"])
        for name in ("preview", "grid_1to1_q98")
    }
    for chart in prepare_charts(contents):
        if isinstance(chart, Chart):
            notes |= {f"assets/charts/{chart.name}-{theme}.png": chart.description for theme in ("light", "dark")}
    for path, note in notes.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1)).save(folder / path, "PNG", exif=origin_note(note))
    for number in range(_COUNT):
        name = text("filestranger", number)
        (folder / "assets" / "comparison" / f"comparison_grid_{name}.webp").write_bytes(_PICTURE)
        (folder / "assets" / "charts" / f"{name}-light.png").write_bytes(_PICTURE)


class Made(NamedTuple):
    """A card and its page."""

    card: str
    page: str


def make(source: Path, place: Path, text: Text) -> Made:
    """Make a card with texts in all places, as the command does."""
    release = place / (_FOLDER if text is hostile_text else "folder")
    digest = write_release(source, release, text)
    (place / "evidence").mkdir()
    shutil.copy(release / _SUMMARY, place / "evidence" / _SUMMARY)
    write_evidence(place / "evidence", digest, text)
    options = [part for tag in tags(text) for part in ("--tag", tag)]
    page = place / "page.html"
    outcome = call("card", release, "--evidence", place / "evidence", "--preview", page, *options)
    assert outcome.code == 0, outcome.stderr
    return Made((release / "README.md").read_text("utf-8"), page.read_text("utf-8"))


def tags(text: Text) -> list[str]:
    """Those texts that can be tags; longer ones are refused."""
    return [tag for tag in each(text, "tag") if len(tag) <= 100]


@pytest.fixture(scope="module")
def hostile(tiny_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A card of hostile texts."""
    return make(tiny_release, tmp_path_factory.mktemp("hostile"), hostile_text)


@pytest.fixture(scope="module")
def harmless(tiny_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same card with harmless texts."""
    return make(tiny_release, tmp_path_factory.mktemp("harmless"), harmless_text)


def test_the_front_matter_holds_the_very_texts(hostile: Made) -> None:
    front, _ = split_card(hostile.card)
    content = yaml.safe_load(front or "")
    expected = [shown(tag) for tag in tags(hostile_text)]
    assert content["tags"][-len(expected) :] == expected
    assert [item["text"] for item in content["widget"]] == [shown(text) for text in each(hostile_text, "prompt")]
    assert check_metadata(hostile.card) == MetadataReport()


@needs_browser
def test_the_page_shows_hostile_texts_and_nothing_comes_of_them(hostile: Made, harmless: Made) -> None:
    # Without the policy of the page, so that it is the escaping that is proven.
    pages = {"whole": harmless.page}
    pages |= {name: without_policy(made.page) for name, made in (("hostile", hostile), ("harmless", harmless))}
    # The same texts as Markdown: one by one in cards, which are sanitised; and as they are, which shows that the
    # browser would have run them, and the site have seen what they ask for.
    texts = [text for text in _HOSTILE if "refresh" not in text and not re.search("[\ud800-\udfff]", text)]
    pages["sanitised"] = "".join(without_policy(render_page(text, str)) for text in texts)
    bare = sorted((text.replace(".example", ".bare.example") for text in texts), key=lambda text: "<!--" in text)
    pages["bare"] = f"<!doctype html>{''.join(map(MarkdownIt('commonmark', {'html': True}).render, bare))}"
    with running_site(pages) as site:
        found = look_at(site, _PROBE, width=390)
    assert found["bare"]["ran"]
    of_bare = {f"{host}.bare.example/{path}" for host, path in _ASKED_FOR}
    of_browser = {f"127.0.0.1/{name}" for name in (*pages, "probe", "favicon.ico")}
    assert of_bare <= set(site.asked) <= of_bare | of_browser
    for name in ("hostile", "harmless", "sanitised"):
        assert not found[name]["ran"]
        assert found[name]["handlers"] == 0
    assert not [address for address in found["sanitised"]["addresses"] if re.match("(javascript|data):", address or "")]
    assert_shown(found["hostile"], found["harmless"])
    # The policy lets through what the page itself needs.
    assert found["whole"] == found["harmless"]
    assert found["whole"]["styled"] == "980px"


def assert_shown(found: dict[str, Any], twin: dict[str, Any]) -> None:
    """Compare the page of hostile texts with that of harmless ones, text by text."""
    assert found["elements"] == sorted({*twin["elements"], "br"})
    assert found["broken"] == twin["broken"] == []
    assert found["wide"] == twin["wide"] == 0
    assert found["title"] == shown(_FOLDER)
    assert [[len(row) for row in table] for table in found["tables"]] == [
        [len(row) for row in table] for table in twin["tables"]
    ]
    # Where the harmless page has the name of a place, the hostile one has the text of that place.
    for key in ("headings", "paragraphs", "points", "captions"):
        assert squeezed(found[key]) == squeezed(map(translated, twin[key])), key
    # Behind the gallery and the grid are the charts, which cut long names.
    assert len(found["images"]) == len(twin["images"]) > _COUNT + 1
    assert squeezed(found["images"][: _COUNT + 1]) == squeezed(map(translated, twin["images"][: _COUNT + 1]))
    for table, other in zip(found["tables"], twin["tables"], strict=True):
        # Rows are sorted by names, which are others; so are the files.
        rows, expected = ([row for row in rows if not _SHA256.fullmatch(row[-1])] for rows in (table, other))
        assert sorted(map(squeezed, rows)) == sorted(squeezed(map(translated, row)) for row in expected)
    assert found["addresses"] == twin["addresses"]
    # The programs contain the name of the release as a Python string, and pin nothing that is not a version.
    programs = [ast.parse(block) for block in found["blocks"] if "import" in block]
    assert len(programs) == 3
    texts = {node.value for program in programs for node in ast.walk(program) if isinstance(node, ast.Constant)}
    assert {_FOLDER, hostile_text("aspectratio", 0)} <= texts
    assert not [block for block in found["blocks"] if "==" in block]


def without_policy(page: str) -> str:
    """A page that may run and fetch what it likes."""
    found, count = re.subn('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert count == 1
    return found


def test_the_markdown_has_no_html_but_its_own(hostile: Made, harmless: Made) -> None:
    # Sites read the card with renderers of their own; what is HTML to them is what is HTML to CommonMark.
    (tags, kinds), (expected_tags, expected_kinds) = markup_of(hostile.card), markup_of(harmless.card)
    assert tags - {"<!-- -->", "<br>", "<code>", "</code>"} == expected_tags
    assert kinds == expected_kinds


def markup_of(card: str) -> tuple[set[str], Counter[str]]:
    """Tags and comments in the lines of a card, those of charts without what they say; and how many links, images and
    marks of emphasis of each kind there are."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(split_card(card)[1])
    assert not [token for token in tokens if token.type == "html_block"]
    parts = [part for token in tokens for part in token.children or ()]
    kinds = ("link_open", "image", "em_open", "strong_open", "s_open", "hardbreak")
    tags = {re.sub(r'(srcset|src|alt)="[^"]*"', r'\1=""', part.content) for part in parts if part.type == "html_inline"}
    return tags, Counter(part.type for part in parts if part.type in kinds)


@pytest.mark.parametrize("text", _HOSTILE, ids=range(_COUNT))
def test_what_cannot_be_a_license_or_a_name_is_refused(text: str) -> None:
    assert not is_repo_id(text)
    # What could be a name is not refused: the Hub decides.
    refused = {"no": set[str](), "1e3": {"language"}}.get(text, {"license", "pipeline_tag", "language"})
    card = replace(_METADATA, license=text, pipeline_tag=text, languages=(text,), base_revision=text).to_yaml()
    problems = check_metadata(card).errors
    assert {problem.split()[0] for problem in problems} == refused | {"base_model_revision"}


@pytest.mark.parametrize("option", ["--repo", "--base-model", "--base-revision", "--license", "--language"])
def test_options_refuse_hostile_texts(release: Path, lensconv: Lensconv, option: str) -> None:
    outcome = lensconv("card", release, option, _HOSTILE[4])
    assert outcome.code in (1, 2)
    assert "<img src=" in outcome.stderr
    assert not (release / "README.md").exists()


@pytest.mark.parametrize("text", _HOSTILE, ids=range(_COUNT))
def test_addresses_lead_to_files_of_any_name(text: str) -> None:
    asked: list[str] = []

    def note(address: str) -> str:
        asked.append(unquote(address, errors="surrogatepass"))
        return "found"

    path = f"assets/{text}"
    card = f"{image(text, path)} {image(text, path, path, 640)} {link(text, path)}"
    page, _ = render_content(card, note, link=note)
    assert asked == [path] * 4
    content = page.partition("<article>")[2].partition("</article>")[0]
    assert re.findall("<([a-z]+)", content) == ["p", "img", "picture", "source", "img", "a"]
    alternatives = [html.unescape(found) for found in re.findall('alt="([^"]*)"', content)]
    assert squeezed(alternatives) == squeezed([shown(text)]) * 2


def test_a_page_as_a_whole() -> None:
    """The kept file has the card in its first line."""
    card = (EXPECTED / "page.html").read_text("utf-8").partition("\n")[0]
    page = render_page(card.replace("¶", "\n"), "resolved {}".format)
    assert page.count(STYLE) == 1
    page = re.sub("'sha256-[^']*'", "", page.replace(STYLE, "")).replace("\n", "¶")
    check_expected("page.html", f"{card}\n{page}\n")
    content, title = render_content("text", str, link="linked {}".format)
    assert (content, title) == ("<article>\n<p>text</p>\n</article>\n", "Model card")
    assert 'href="linked a.txt"' in render_content("[a](a.txt)", str, link="linked {}".format)[0]
