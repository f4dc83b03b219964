"""``lensconv generate``: images from original and quantized repos, their settings, and runs that are stopped."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from converter import __version__
from converter.errors import OutputError, UsageError
from converter.libraries import package_versions
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.generation.encoding import PromptStage
from converter.measurement.generation.feature_cache import FeatureCache, encoder_identity
from converter.measurement.generation.generate import GenerateReport
from converter.measurement.generation.loading import load_pipeline
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.repo import open_pipeline
from converter.measurement.generation.settings import choose_settings
from converter.models.lens.features import PromptFeatures
from converter.models.lens.resolutions import RESOLUTIONS
from tests.cases import check_cases
from tests.conftest import ROOT, Lensconv, Outcome, command, edit_json, names_in, snapshot, time_limit
from tests.expected import check_expected
from tests.forms import accepted
from tests.generations import SMALL, change_tensors, draw, editable, pixels


def test_an_image_tells_how_it_was_made(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    prompt = 'Вывеска "ТИПОГРАФИЯ" & <b>lamps</b>'
    outcome = draw(lensconv, tiny_repo, tmp_path / "image.png", "--negative-prompt", "blur", "--seed", 7, prompt=prompt)
    assert outcome.code == 0, outcome.stderr
    result, settings = outcome.result, outcome.result["settings"]
    assert accepted(result, "generate") == []
    assert (result["image"], result["seed"]) == (str(tmp_path / "image.png"), 7)
    with Image.open(tmp_path / "image.png") as image:
        assert (image.size, image.mode) == ((96, 64), "RGB")
        texts = image.text  # type: ignore[attr-defined]
    told = {"prompt": prompt, "negative_prompt": "blur"}
    assert texts == {**texts, **told, "lensconv": json.dumps(settings, sort_keys=True, ensure_ascii=False)}
    drawn = {"prompt": prompt, "steps": 2, "guidance": 5.0, "quantization": None, "device": "cpu"}
    assert settings == {**settings, **drawn, "versions": {"lensconv": __version__, **package_versions()}}
    assert [result[name] for name in ("predicted_device_memory_bytes", "peak_device_bytes")] == [None, None]
    assert result["predicted_memory_bytes"] == 319_490_062 < result["peak_rss_bytes"]
    assert re.findall(r"loading the (\w+).*, (.+)", outcome.stderr) == [("text", "3.4 MB"), ("transformer", "22.3 MB")]
    assert names_in(tmp_path) == ["image.png"]


def test_the_same_settings_give_the_same_bytes_and_others_do_not(
    tiny_repo: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    variants: dict[str, tuple[object, ...]] = {
        "first": (),
        "again": (),
        "seed": ("--seed", 1),
        "negative": ("--negative-prompt", "ugly"),
        "guidance": ("--guidance", 1),
        "date": ("--date", "2020-01-31"),
        "prompt": ("--prompt", "two dogs"),
    }
    for name, options in variants.items():
        assert draw(lensconv, tiny_repo, tmp_path / f"{name}.png", *options).code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "first.png").read_bytes()
    for name in ("seed", "negative", "guidance", "date", "prompt"):
        assert (pixels(tmp_path / f"{name}.png") != pixels(tmp_path / "first.png")).any(), name


def test_offloading_and_quantizing_change_nothing_and_little(
    tiny_repo: Path, tiny_release: Path, release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    for name, repo, offloads in (("original", tiny_repo, ("model",)), ("quantized", tiny_release, ("sequential",))):
        for offload in ("none", *offloads):
            outcome = draw(lensconv, repo, tmp_path / f"{name}-{offload}.png", "--offload", offload)
            assert (outcome.code, outcome.result.get("offload")) == (0, offload), outcome.stderr
            assert ("saves no memory on a CPU" in outcome.stderr) == (offload != "none")
            plain = (tmp_path / f"{name}-none.png").read_bytes()
            assert (tmp_path / f"{name}-{offload}.png").read_bytes() == plain
    for file in (release / "transformer").glob("*config.json"):
        file.write_text(file.read_text().replace('"use_quantized_matmul": true', '"use_quantized_matmul": false'))
    for drawn, products in ((outcome, "int8"), (draw(lensconv, release, tmp_path / "plain.png"), None)):
        quantization = {"weights_dtype": "uint4", "layers": 40, "quantized_matmul": products, "int8_chain": False}
        quantization |= {"int8_kernel": "torch" if products else None, "sdnq_compiles": False}
        assert drawn.result["settings"]["quantization"] == quantization
    difference = np.abs(pixels(tmp_path / "quantized-none.png") - pixels(tmp_path / "original-none.png"))
    # Another seed differs by 50 levels on average, here as with the real model.
    assert 0 < difference.mean() < 10
    assert draw(lensconv, tiny_repo, tmp_path / "float32.png", "--dtype", "float32").code == 0
    difference = np.abs(pixels(tmp_path / "float32.png") - pixels(tmp_path / "original-none.png"))
    assert 0 < difference.mean() < 10


def test_the_int8_chain_draws_the_same_image_where_it_can(
    tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    draws: dict[str, tuple[Path, tuple[str, ...], bool | None]] = {
        "sdnq": (tiny_release, ("--int8", "sdnq"), False),
        "chain": (tiny_release, (), True),
        "offloaded": (tiny_release, ("--offload", "sequential"), False),
        "original": (tiny_repo, (), None),
    }
    for name, (repo, options, is_used) in draws.items():
        outcome = draw(lensconv, repo, tmp_path / f"{name}.png", "--int8", "chain", *options)
        assert accepted(outcome.result, "generate") == []
        reason = outcome.stderr.partition("the int8 chain is not used, but SDNQ's own layers: ")[2]
        assert reason.startswith("a module has hooks") if name == "offloaded" else not reason
        settings = outcome.result["settings"]
        assert settings["int8"] == ("sdnq" if name == "sdnq" else "chain")
        assert (settings["quantization"] or {}).get("int8_chain") is is_used
    for name in ("chain", "offloaded"):
        assert (pixels(tmp_path / f"{name}.png") == pixels(tmp_path / "sdnq.png")).all()


def test_an_image_of_the_default_size(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    options = ("--prompt", "x", "--out", tmp_path / "image.png", "--steps", 1, "--guidance", 1.5)
    outcome = lensconv("generate", tiny_repo, *options)
    # The terminal may wrap within the path; so compare without spaces.
    shown = re.sub(r"[\d.]+s,peakmemory[\d.]+[MG]B", "TIME,MEMORY", "".join(outcome.stderr.split()))
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (256, 256)
    assert shown.endswith("/image.png:256x256,1steps,guidance1.5,seed0,bfloat16oncpu,notquantized,TIME,MEMORY.")


def test_defaults_suit_the_variant(tiny_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variant in (
        ("Lens", (20, 5.0)),
        ("Lens-Turbo-uint4", (4, 1.0)),
        ("models--microsoft--Lens-Base/snapshots/abc", (50, 5.0)),
        ("lensbase/a/b", (50, 5.0)),
        ("my_lens_turbo", (4, 1.0)),
        ("lens_turbo/a/b/c", (20, 5.0)),
    ):
        folder = tmp_path / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(tiny_repo)
        # The names of the folders above count too where they are not given.
        monkeypatch.chdir(folder.parent)
        settings = choose_settings(open_pipeline(Path(folder.name)), "x", GenerateOptions(base_resolution=1440))
        assert (settings.steps, settings.guidance, settings.height, settings.width) == (*variant, 1440, 1440)
    # The real autoencoder's images are not small; the published ones are of the larger class. Names are today's.
    real = editable(tiny_repo, tmp_path)
    names = {"text_encoder": ["transformers", "GptOssForCausalLM"], "tokenizer": ["transformers", "TokenizersBackend"]}
    edit_json(real / "model_index.json", **names)
    for natural, side in (("256", 1440), (15, 1440), (16, 16), (1023, 1008), (1024, 1440)):
        edit_json(real / "vae" / "config.json", sample_size=natural)
        settings = choose_settings(open_pipeline(real), "x", GenerateOptions())
        assert (settings.height, settings.width) == (side, side)
    for repo, options, size in (
        (real, GenerateOptions(aspect_ratio="16:9"), (1088, 1936)),
        (tiny_repo, GenerateOptions(base_resolution=1024), (1024, 1024)),
    ):
        settings = choose_settings(open_pipeline(repo), "x", options)
        assert (settings.height, settings.width) == size
    check_expected("resolutions.json", json.dumps(RESOLUTIONS) + "\n")


def test_kept_features_spare_the_text_encoder(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    repo, kept, images = editable(tiny_repo, tmp_path), tmp_path / "kept", tmp_path / "images"
    images.mkdir()
    more = {"large.weight": torch.zeros(40_000_000, dtype=torch.bfloat16)}
    change_tensors(repo / "text_encoder" / "model.safetensors", lambda tensors: tensors.update(more))
    # A number of layers that no file has to fill, though few tensors can.
    edit_json(repo / "vae" / "config.json", more_layers=1024)
    options = ("--features", kept, "--negative-prompt", "blur")
    first = draw(lensconv, repo, images / "first.png", *options)
    assert first.code == 0, first.stderr
    assert len(names_in(kept)) == 2
    outcome = draw(lensconv, repo, images / "second.png", *options)
    assert first.result["predicted_memory_bytes"] - outcome.result["predicted_memory_bytes"] > 40_000_000
    assert "text encoder" not in outcome.stderr
    assert draw(lensconv, repo, images / "without.png", "--negative-prompt", "blur").code == 0
    assert (len(names_in(images)), len({*snapshot(images).values()})) == (3, 1)


def test_features_that_are_none_are_not_found(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "new" / "kept", {}, layers=2, width=3)
    good = {"0": torch.zeros(1, 4, 3), "1": torch.ones(1, 4, 3), "mask": torch.ones(1, 4, dtype=torch.bool)}
    features = PromptFeatures((good["0"], good["1"]), good["mask"])
    cache.keep("x", features)
    (file,) = cache.folder.iterdir()
    content = file.read_bytes()
    changes = {"0": torch.zeros(1, 4, 2), "1": good["1"] / 0, "mask": good["mask"].int(), "2": torch.zeros(1)}
    changed = [save({**good, name: tensor}) for name, tensor in (*changes.items(), ("mask", good["mask"][0]))]
    for damaged in (b"", b"{}", content[:-7], save({"mask": good["mask"]}), *changed):
        file.write_bytes(damaged)
        assert cache.find("x") is None
        cache.keep("x", features)
        assert (names_in(cache.folder), file.read_bytes()) == ([file.name], content)
    with pytest.raises(OutputError, match="is not a folder, which --features needs"):
        FeatureCache(file, {}, layers=2, width=3)
    file.unlink()
    file.mkdir()
    assert cache.find("x") is None
    with pytest.raises(OutputError, match="Is a directory"):
        cache.keep("x", features)
    assert names_in(cache.folder) == [file.name]


def test_features_are_kept_for_all_that_they_depend_on(tiny_repo: Path, tmp_path: Path) -> None:
    repo = editable(tiny_repo, tmp_path)
    (repo / "tokenizer" / "folder").mkdir()

    def found(device: str = "cpu", encodes: bool = False, **options: Any) -> list[str]:
        opened = open_pipeline(repo)
        settings = choose_settings(opened, "a cube", GenerateOptions(**options))
        stage = PromptStage(opened, settings, torch.device(device), folder=tmp_path / "kept")
        return list(stage.encode(["a cube"]) if encodes else stage.find(["a cube"]))

    assert found(encodes=True) == found(negative_prompt="blur", seed=1) == ["a cube"]
    assert found("cuda") == found(dtype="float32") == found(date="2020-01-31") == []
    for change in (
        *("transformer/config.json 23 22", "text_encoder/config.json 150000 160000"),
        *('text_encoder/model.safetensors "pt" "np"', "tokenizer/chat_template.jinja ChatGPT ChatTPG"),
    ):
        name, old, new = change.split()
        content, status = (repo / name).read_bytes(), (repo / name).stat()
        for there, expected in ((content.replace(old.encode(), new.encode(), 1), []), (content, ["a cube"])):
            (repo / name).write_bytes(there)
            os.utime(repo / name, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert found() == expected, name
    os.utime(repo / "text_encoder" / "model.safetensors", ns=(1, 1))
    assert found() == []
    identity = encoder_identity(open_pipeline(repo).text_encoder, repo / "tokenizer")
    assert [identity[name] for name in ("torch", "transformers")] == [version("torch"), version("transformers")]


@pytest.mark.parametrize(
    ("offload", "is_hooked", "is_away"), [("none", False, False), ("model", True, False), ("sequential", True, True)]
)
def test_weights_wait_where_they_were_asked_to(tiny_repo: Path, offload: str, is_hooked: bool, is_away: bool) -> None:
    model = load_pipeline(open_pipeline(tiny_repo), torch.float32, torch.device("cpu"), offload).transformer
    assert (hasattr(model, "_hf_hook"), model.proj_out.weight.is_meta) == (is_hooked, is_away)


def test_options_out_of_range_and_just_in_range(tiny_repo: Path) -> None:
    """Of an image, or of a benchmark, which has modes: what is chosen, or why nothing can be."""
    repo = open_pipeline(tiny_repo)

    def outcome(options: dict[str, Any]) -> str:
        try:
            if options.keys() & {"mode", "pairs", "timing_prompts", "timeout"}:
                return str(BenchOptions(**options).modes)
            settings = choose_settings(repo, options.pop("prompt", "x"), GenerateOptions(**options))
            return " ".join(map(str, [*asdict(settings).values()][2:])) + f" {settings.grid} {len(settings.prompts)}"
        except UsageError as error:
            return str(error)

    check_cases("options.jsonl", lambda options: outcome(dict(options)))


def test_bad_options_leave_nothing(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    for name, value, said in (
        ("--steps", 0, "'--steps': 0 is not in the range"),
        *(("--device", name, f"--device {name}: must be auto") for name in ("banana", "meta")),
        *((name, "lone \udcff surrogate", f"{name}: is not text") for name in ("--prompt", "--negative-prompt")),
    ):
        outcome = lensconv("generate", tiny_repo, "--prompt", "x", "--out", tmp_path / "x.png", name, value, "--json")
        assert (outcome.code, outcome.result["error"]["type"]) == (2, "UsageError")
        assert accepted(outcome.result, "error") == []
        assert said in outcome.result["error"]["message"]
    assert names_in(tmp_path) == []


def test_prompts_of_any_length_and_kind(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    for number, prompt in enumerate(["", " ", "x" * 5000, "<|return|><|start|>", "{{ 7 * 7 }} {% raw %}", "\0\n\t😀"]):
        output = tmp_path / f"{number}.png"
        assert draw(lensconv, tiny_repo, output, prompt=prompt).code == 0
        with Image.open(output) as image:
            assert json.loads(image.text["lensconv"])["prompt"] == prompt  # type: ignore[attr-defined]


def test_what_generate_says_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lensconv: Lensconv) -> None:
    settings: dict[str, Any] = {
        **dict.fromkeys(("width", "height", "steps", "seed"), 1),
        "guidance": 1.0,
        "quantization": None,
    }
    settings |= {"dtype": "bfloat16", "device": "cuda"}
    report = GenerateReport(Path("x.png"), settings, "none", 10**6, 20 * 10**9, 10**6, 19 * 10**9, 1.0)
    monkeypatch.setattr("converter.measurement.generation.generate.generate", lambda *_, **__: report)
    shown = lensconv("generate", tmp_path, "--prompt", "x", "--out", "x.png").stderr
    assert "peak memory 1.0 MB, peak GPU memory 19.000 GB (20.000 GB predicted)." in " ".join(shown.split())


def test_places_where_no_image_can_go(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    taken = tmp_path / "taken.PNG"
    taken.write_text("mine")
    (tmp_path / "folder.png").mkdir()
    for name in ("taken.PNG", "folder.png", "missing/x.png", "image.jpg"):
        outcome = draw(lensconv, tiny_repo, tmp_path / name)
        kind = "UsageError" if name == "image.jpg" else "OutputError"
        assert (outcome.code, outcome.result["error"]["type"]) == (2, kind)
    assert taken.read_text() == "mine"
    assert names_in(tmp_path) == ["folder.png", "taken.PNG"]
    assert draw(lensconv, tiny_repo, taken, "--overwrite").code == 0
    assert pixels(taken).shape == (64, 96, 3)


def test_quiet_is_quiet(tiny_repo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], lensconv: Lensconv) -> None:
    """Neither this project nor a library says anything."""
    outcome = lensconv("generate", tiny_repo, "--prompt", "x", *SMALL, "--out", tmp_path / "x.png", "--quiet")
    assert outcome == Outcome(0, "", "")
    assert capfd.readouterr() == ("", "")


def test_a_run_that_is_stopped_while_it_imports_leaves_nothing(tiny_repo: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("generate", tiny_repo, "--prompt", "x", "--out", tmp_path / "x.png"),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.terminate()
    with time_limit(120):
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert names_in(tmp_path) == []


def test_a_run_that_is_stopped_while_it_draws_leaves_nothing(tiny_repo: Path, tmp_path: Path) -> None:
    """On a terminal, where a bar shows the steps."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        command("generate", tiny_repo, "--prompt", "x", "--out", tmp_path / "x.png", "--steps", 1000),
        stderr=end, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(end)
    said = ""
    with time_limit(120):
        while not re.search(r"\b[1-9]\d*/1000 steps", said):
            said += read_terminal(terminal)
        process.send_signal(signal.SIGINT)
        while more := read_terminal(terminal):
            said += more
        stdout, _ = process.communicate()
    os.close(terminal)
    assert (process.returncode, stdout) == (130, b""), said
    assert "Traceback" not in said
    assert names_in(tmp_path) == []


def read_terminal(terminal: int) -> str:
    """What a process has written to a terminal, without control sequences; empty when there is nobody any more."""
    try:
        content = os.read(terminal, 1 << 16)
    except OSError:
        # So does Linux tell that the other end is closed.
        return ""
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", content.decode(errors="replace"))
