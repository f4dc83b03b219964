"""README and docs: the commands that they show work, and what they say is there is there."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
import pytest
import torch
from safetensors.torch import save_file

from converter.cli.main import cli
from converter.rendering import render
from scripts.benchmark import BEGIN, END, PAGE, summarise
from scripts.gpu import make_parser
from scripts.screen import WIDTH, screen
from tests.conftest import ROOT, Lensconv, all_commands, run_python

README = (ROOT / "README.md").read_text()
PAGES = {file.name: file.read_text() for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
#: Pages whose commands are run one after the other, as a reader would.
RUN = ("converting.md", "verifying.md", "recipes.md", "generating.md")
#: Other programs that the pages call.
OTHERS = {"apt-get", "hf", "pip", "scripts/demo", "scripts/gpu", "scripts/test"}


def blocks(name: str, language: str) -> list[str]:
    """The code of one language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGES[name], flags=re.DOTALL)


def commands(name: str) -> Iterator[list[str]]:
    """What a page calls, in words."""
    for block in blocks(name, "sh"):
        for line in block.replace("\\\n", "").splitlines():
            yield shlex.split(line, comments=True)


def lensconv_commands(name: str) -> list[list[str]]:
    """Those of lensconv, without its name."""
    return [words[1:] for words in commands(name) if words[0] == "lensconv"]


@pytest.mark.parametrize("name", PAGES)
def test_commands_have_the_options_that_are_shown(name: str) -> None:
    for program, *words in commands(name):
        if program != "lensconv":
            assert program in OTHERS
            continue
        found = next(path for path in all_commands() if words[: len(path.split())] == path.split())
        rest = words[len(found.split()) :]
        all_commands()[found].make_context(found, rest, parent=cli.make_context("lensconv", [found, "--help"]))
    options = {option for command in all_commands().values() for item in command.params for option in item.opts}
    options |= {"--help", *make_parser()._option_string_actions}
    for text in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)):
        assert set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]+", text)) <= options, text
        if text.startswith("lensconv "):
            assert any(f"{text} ".startswith(f"lensconv {path} ") for path in [*all_commands(), "COMMAND"]), text


@pytest.mark.parametrize("name", PAGES)
def test_links_and_files_are_there(name: str) -> None:
    folder = ROOT if name == "README.md" else ROOT / "docs"
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        assert link.startswith("https://") or (folder / link).is_file(), link
    for file in re.findall(r"`((?:scripts|benchmarks)/[a-z_.-]+)", PAGES[name]):
        assert (ROOT / file).is_file(), file


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.split()) <= 1600
    assert set(re.findall(r"docs/[a-z-]+\.md", README)) == {f"docs/{name}" for name in PAGES if name != "README.md"}


def test_commands_and_python_work(tmp_path: Path) -> None:
    runs = [words for name in RUN for words in lensconv_commands(name) if "hf://" not in " ".join(words)]
    assert {words[0] for words in runs} == {"synth", "plan", "convert", "verify", "generate"}
    # The blocks after the first are further rules for it.
    (tmp_path / "mine.toml").write_text("\n".join(blocks("recipes.md", "toml")))
    for name in ("style", "details"):
        module = "transformer.transformer_blocks.0.attn.to_q"
        factors = {f"{module}.lora_A.weight": torch.ones(4, 128), f"{module}.lora_B.weight": torch.ones(128, 4)}
        save_file(factors, tmp_path / f"{name}.safetensors")
    python = [program for name in RUN for program in blocks(name, "python")]
    assert len(python) == 2
    # All of it in one process, because each process would spend its time on imports; and with a smaller model.
    runs = [[*words, *(["--layers", "1"] if "tiny" in words else [])] for words in runs]
    program = (
        "from converter.cli.main import run\nfrom converter.console import Console\n"
        f"for line in {runs!r}:\n    assert run(line, Console()) == 0, line\n"
        f"for program in {python!r}:\n    exec(program, {{}})\n"
    )
    done = run_python(program, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_commands_that_take_minutes_are_those_of_the_demo() -> None:
    """CI runs the demo. What needs huggingface.co, or does not end by itself, is only parsed."""
    text = (ROOT / "scripts" / "demo").read_text().replace("\\\n", "")
    demo = {shlex.split(line)[1] for line in text.splitlines() if line.startswith("lensconv")}
    shown = {words[0] for name in PAGES for words in lensconv_commands(name)}
    assert shown - demo == {"generate", "prompts", "compare", "hub"}
    assert {"bench", "evidence", "grid", "charts", "card", "publish"} <= shown


def test_the_readme_shows_what_the_commands_print(
    lensconv: Lensconv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for figures, which depend on the machine and on versions of libraries; scripts/screen renews it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDTH)

    def run(words: Sequence[str]) -> str:
        outcome = lensconv(*words)
        assert outcome.code == 0
        return outcome.stderr

    def plain(text: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r"[0-9a-f]{16}|[0-9][0-9.,]*( [MG]B)?|─+", "0", text))

    assert plain(screen(run)) in plain(README)


def test_the_docs_show_figures_that_were_measured() -> None:
    """The table between the marks is what the template makes of the measurements in the repository."""
    result = json.loads((ROOT / "benchmarks" / "conversion.json").read_text())
    table = render("benchmark_table.md.jinja", **result, **summarise(result))
    assert f"{BEGIN}\n{table}{END}" in PAGE.read_text()
    with pytest.raises(jinja2.UndefinedError):
        render("benchmark_table.md.jinja", **result)
    assert result["identical_bytes"] is True
