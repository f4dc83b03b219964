"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import errno
import importlib
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import types
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import torch

from converter import BenchOptions, CardOptions, ConvertOptions, GenerateOptions, PublishOptions
from converter.checkpoint.writer import write_error
from converter.cli import main as main_module
from converter.cli.main import cli, run
from converter.cli.options import SIZE
from converter.console import Console
from converter.conversion.preview import CUDA_LIBRARY_BYTES
from converter.errors import DependencyError, DiskError, InputError, MemoryLimitError, OutputError, ResourceError
from converter.libraries import (
    DECISIVE_PACKAGES,
    library_threads,
    load_library,
    package_versions,
    quantization_environment,
)
from converter.memory import free_memory_bytes, require_free_memory
from converter.models.lens.layout import CLASS_NAME, LensConfig, lens_tensors
from converter.schemas import load_schema
from tests.cases import check_cases
from tests.checkpoints import WEIGHTS, write_holes
from tests.conftest import ROOT, Lensconv, Outcome, all_commands, run_process, run_program, run_python, snapshot
from tests.expected import check_expected
from tests.forms import accepted
from tests.published import published_matrix


def imports_of(*arguments: object) -> set[str]:
    """Top-level modules that a command imports."""
    program = (
        "import sys\nfrom converter.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = run_python(program, *arguments)
    assert done.returncode == 0, done.stderr
    return {line.partition(".")[0] for line in done.stderr.splitlines()}


def test_what_each_option_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its default, which of some values it takes, ``...`` being every one of them, and what the help says beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    texts = ["", "-1", "0", "0.5", "1", "7", "101", "1e9", "nan", "5GB", "a/b", "folder", "hf://a/b"]
    lines = []
    for name, command in all_commands().items():
        context = click.Context(command, parent=cli.make_context("lensconv", [name, "--help"]), info_name=name)
        taken = []
        for option in command.params:
            default = option.to_info_dict().get("default")
            values = [*texts, *map(str, getattr(option.type, "choices", ()))]
            if getattr(option, "is_flag", False):
                values = []
            accepted = []
            for value in values:
                with suppress(click.ClickException, InputError):
                    option.process_value(context, (value,) if option.multiple or option.nargs != 1 else value)
                    accepted.append(value)
            words = accepted if accepted != values or not values else ["..."]
            help_line = (option.get_help_record(context) or ("", ""))[1]
            marks = [*re.findall(r"\[(.*)\]$", help_line), "repeatable" * option.multiple, "required" * option.required]
            taken.append(
                [" ".join([*option.opts, *option.secondary_opts]), default, " ".join(words), *filter(None, marks)]
            )
        lines.append(json.dumps([name, *taken], default=str))
    # What callers from Python leave out.
    for model in (ConvertOptions, GenerateOptions, BenchOptions, CardOptions, PublishOptions):
        lines.append(json.dumps([model.__name__, asdict(model())], default=str))
    check_expected("command_options.jsonl", "\n".join(lines) + "\n")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([*name.split(), "-h"] for name in all_commands())])
def test_help_imports_next_to_nothing(arguments: list[str]) -> None:
    found = imports_of(*arguments)
    heavy = {"torch", "diffusers", "transformers", "sdnq", "numpy", "numba", "rich", "jinja2"}
    assert not found & {*heavy, "PIL", "huggingface_hub", "jsonschema", "matplotlib", "scipy", "skimage"}
    assert found >= {"converter", "click"}


def test_neither_verifying_headers_nor_converting_lens_imports_torch(
    lens_source: Path, lens_output: Path, tmp_path: Path
) -> None:
    heavy = {"torch", "diffusers", "transformers", "sdnq", "numba", "huggingface_hub", "jsonschema"}
    for options in ([], ["--recipe", "lens-uint4-static", "--checksums"]):
        assert not imports_of("verify", lens_output, *options) & heavy
    assert not imports_of("convert", lens_source, tmp_path / "out") & {"torch", "diffusers", "sdnq"}
    on_device = imports_of("convert", lens_source, tmp_path / "on-device", "--device", "cpu:0")
    assert {"torch", "diffusers", "sdnq"} & on_device == {"torch"}


#: What programs of users import from ``converter``; a name that goes breaks them.
PUBLIC_NAMES = """
AblateOptions AblationReport AdapterChoice BenchOptions BenchReport CardOptions CardReport ChartsReport Checkpoint
ConvertOptions ConvertReport FidelityReport GenerateOptions GenerateReport GridReport Header LensconvError PlanReport
PromptSuite PublishOptions Receipt Recipe Rehearsal ReportPage Reporter ReproduceReport Rule SearchOptions
SearchReport SuitePrompt SweepReport SynthReport TensorEntry VerifyReport __version__ ablate bench compare convert
draw_charts find_recipe generate import_card make_card make_grid make_report open_checkpoint plan publish
read_evidence read_evidence_folder read_header read_suite rehearse reproduce search sweep synthesize verify
"""


def test_the_public_names() -> None:
    package = importlib.import_module("converter")
    assert package.__all__ == PUBLIC_NAMES.split()
    for name in package.__all__:
        # A function that shares its name with its module is the one that is meant.
        assert not isinstance(getattr(package, name), types.ModuleType)
    assert not imports_of("--help") & {"torch"}
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


@pytest.mark.parametrize("name", all_commands())
def test_every_command_has_help_an_example_and_the_common_options(name: str) -> None:
    command = all_commands()[name]
    parent = cli.make_context("lensconv", [name, "--help"])
    text = command.get_help(click.Context(command, parent=parent, info_name=name))
    assert f"Example: lensconv {name} " in text
    for option in ("--json", "--quiet", "-h, --help"):
        assert option in text
    assert command.short_help


def test_examples_in_the_help_are_commands() -> None:
    """Each example parses: its options exist and take such values."""
    for name, command in all_commands().items():
        words = shlex.split((command.epilog or "").removeprefix(f"Example: lensconv {name} "))
        assert words[0] != "Example:"
        command.make_context(name, words, parent=cli.make_context("lensconv", [name, "--help"]))


def test_evidence_and_cards_fit_their_schemas(lensconv: Lensconv, release: Path, tmp_path: Path) -> None:
    (tmp_path / "comparison_matrix.json").write_text(json.dumps(published_matrix()))
    page = str(tmp_path / "page.html")
    for name, *line in (("evidence", tmp_path), ("card", release), ("card", release, "--preview", page)):
        result = lensconv(name, *line, "--json").result
        found = accepted(result, name)
        assert name == "evidence" or found == []
        assert result.get("preview") == (page if page in line else None)


def test_quiet_is_quiet(lensconv: Lensconv, lens_source: Path, lens_output: Path) -> None:
    for arguments in (["plan", lens_source], ["verify", lens_output]):
        assert lensconv(*arguments, "--quiet") == Outcome(0, "", "")


@pytest.mark.parametrize("error", [ValueError("no shape"), InputError("cannot be used: no shape")])
def test_what_a_library_makes_of_a_signal_is_the_signal(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own code turns what a handler raises into another error, and other code blames a file for that."""

    def command(*_: object, **__: object) -> None:
        try:
            main_module._interrupt(signal.SIGINT, None)
        except KeyboardInterrupt:
            raise error from None

    monkeypatch.setattr(main_module, "_ignore_signals", lambda: None)
    monkeypatch.setattr(main_module.cli, "main", command)
    console = Console(stderr=io.StringIO())
    assert run([], console) == 130
    monkeypatch.setattr(main_module.cli, "main", lambda *_, **__: 0)
    assert run([], console) == 0
    # The next command in this process was not told to stop.
    monkeypatch.setattr(main_module.cli, "main", lambda *_, **__: load_schema("none"))
    assert run([], console) == 2


def test_usage_errors(lensconv: Lensconv) -> None:
    """Command lines that are wrong, and what is said of them. The corpus of bad input has more."""

    def said(line: str) -> str:
        outcome = lensconv(*line.split())
        assert (outcome.code, outcome.stdout) == (2, "")
        return outcome.stderr

    check_cases("usage_errors.jsonl", said)


def test_sizes_have_units_of_thousands_and_of_1024() -> None:
    units = ("", "b", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB")
    found = [SIZE.convert(f"1.5 {unit}", None, None) for unit in units]
    assert found == [1, 1, *(int(1.5 * 10 ** (3 * n)) for n in range(1, 5)), *(3 << (10 * n - 1) for n in range(1, 5))]


@pytest.mark.parametrize(("name", "more"), [("convert", ", or lower --memory and --jobs"), ("verify", "")])
def test_memory_that_runs_out(name: str, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(main_module.cli, "main", command)
    assert run([name, "convert"], Console(stderr=(stderr := io.StringIO()))) == 3
    assert stderr.getvalue() == f"error: there is not enough memory. Close other programs{more}.\n"


def test_a_disk_that_is_full_is_an_error_of_its_own() -> None:
    """And so is a quota; too many open files are another, and so is a folder that may not be written."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EACCES)
    raised = [OSError(number, os.strerror(number), "/x") for number in numbers]
    found = [type(write_error(Path("/x"), error)) for error in raised]
    assert found == [DiskError, DiskError, DiskError, ResourceError, ResourceError, OutputError]
    assert [type(main_module._system_error(error)) for error in raised] == [
        *[DiskError] * 2,
        InputError,
        *[ResourceError] * 2,
        InputError,
    ]
    shown = [main_module._system_error(error).with_hint for error in (raised[0], OSError(errno.EIO, "broken"))]
    assert shown == ["/x: No space left on device. Free some space.", "broken. Check the path and its permissions."]


def test_without_a_command_the_help_is_shown() -> None:
    done = run_process()
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


def test_output_that_nobody_reads_any_more(lens_output: Path) -> None:
    line = f"{sys.executable} -m converter verify --json"
    done = run_shell(f"{line} {lens_output} | head -c 1; {{ {line} nothing; echo $? >&2; }} | true")
    assert (done.stdout, done.stderr) == ("{", "1\n")


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>/dev/full"])
def test_streams_that_are_closed_or_full(streams: str, lens_source: Path, lens_output: Path, tmp_path: Path) -> None:
    done = run_shell(f"{sys.executable} -m converter convert {lens_source} {tmp_path}/out {streams}")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert snapshot(tmp_path / "out") == snapshot(lens_output)


def test_standard_input_that_is_closed_is_empty() -> None:
    program = "import sys; from converter.cli import main; main.run = lambda *_: len(sys.stdin.read()); main.main([])"
    assert run_shell(f"{sys.executable} -c '{program}' <&-").returncode == 0


@pytest.mark.parametrize("streams", [">/dev/full", ">/dev/full 2>&1"])
def test_a_result_that_cannot_be_written(streams: str, lens_output: Path) -> None:
    done = run_shell(f"{sys.executable} -m converter verify {lens_output} --json {streams}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: the result cannot be written to stdout") or "2>&1" in streams
    assert len(done.stderr.splitlines()) <= 1


def run_shell(script: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell from the root of the repository."""
    return run_program("sh", "-c", script)


def test_memory_is_that_of_the_process_itself() -> None:
    """A large process that starts it hands its own peak on, as far as the kernel's accounting goes."""
    program = (
        "import subprocess, sys\nheavy = bytearray(500 * 10**6)\nheavy[::4096] = bytes(len(heavy[::4096]))\n"
        "own = 'from converter.memory import peak_rss_bytes; print(peak_rss_bytes())'\n"
        "subprocess.run([sys.executable, '-c', own])"
    )
    done = run_python(program, check=True)
    assert 1_000_000 < int(done.stdout) < 200_000_000


def test_memory_that_is_mapped_is_not_free() -> None:
    program = (
        "import mmap, resource\nfrom converter.memory import free_memory_bytes as free\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9,) * 2)\nmapped = mmap.mmap(-1, 25 * 10**8)\nprint(free())"
    )
    assert int(run_python(program, check=True).stdout) < 500_000_000


def test_memory_that_control_groups_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case: the lines that name the own groups, and the files of these and others."""

    def free(own: str, files: dict[str, str]) -> int:
        shutil.rmtree(tmp_path)
        for name, text in {"own": own, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return free_memory_bytes()

    monkeypatch.setattr("converter.memory._OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr("converter.memory._CGROUPS", tmp_path)
    check_cases("memory_cases.jsonl", free)
    monkeypatch.setattr("converter.memory._MEMINFO", tmp_path / "meminfo")
    assert free("", {"meminfo": "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 3 kB\nSwapFree: 2 kB\n"}) == 3072
    # Work may be swapped out.
    require_free_memory(5120, "x")
    with pytest.raises(MemoryLimitError):
        require_free_memory(5121, "x")


def test_libraries_that_are_missing_and_their_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDNQ_USE_TORCH_COMPILE")
    assert quantization_environment() == {"SDNQ_USE_TORCH_COMPILE": "0"}
    monkeypatch.syspath_prepend(tmp_path)
    logs = [importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    for log in logs:
        log.set_verbosity_info()
        log.enable_progress_bar()
    logging.getLogger("sdnq").setLevel(logging.INFO)
    (tmp_path / "noisy.py").write_text("import warnings\nwarnings.warn('x')")
    load_library("noisy")
    assert [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs] == [(logging.ERROR, False)] * 2
    assert logging.getLogger("sdnq").level == logging.ERROR
    # What a program has imported is quiet from its first use on; what the program wants later stays.
    monkeypatch.setattr("converter.libraries._loaded", set())
    for level in (logging.ERROR, logging.INFO):
        logs[0].set_verbosity_info()
        load_library("diffusers")
        assert logs[0].get_verbosity() == level
    logs[0].set_verbosity_error()
    (tmp_path / "broken.py").write_text("import missing.part")
    for name, package in (("nothing.at.all", "nothing"), ("broken", "missing")):
        with pytest.raises(DependencyError, match=name) as caught:
            load_library(name)
        assert caught.value.hint == f"pip install --upgrade {package}"
    with pytest.raises(ModuleNotFoundError):
        load_library("converter.nothing")
    assert package_versions() == {name: version(name) for name in DECISIVE_PACKAGES}
    monkeypatch.setattr("converter.libraries.DECISIVE_PACKAGES", ("no-such-thing",))
    with pytest.raises(DependencyError, match="no-such-thing is not installed"):
        package_versions()
    monkeypatch.setenv("SDNQ_A", "1")
    monkeypatch.setenv("SDNQ_USE_TORCH_COMPILE", "1")
    assert [*quantization_environment().items()] == [("SDNQ_A", "1"), ("SDNQ_USE_TORCH_COMPILE", "1")]
    monkeypatch.setenv("OMP_NUM_THREADS", f"{torch.get_num_threads() + 1}")
    assert library_threads() == torch.get_num_threads()
    monkeypatch.delitem(sys.modules, "torch")
    cores = len(os.sched_getaffinity(0))
    for mkl, omp, threads in (("3", "5", 3), ("", "5", 5), ("x", "7", 7), ("", "", cores)):
        monkeypatch.setenv("MKL_NUM_THREADS", mkl)
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
        assert library_threads() == threads


def test_names_from_files_are_shown_as_text(lens_source: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    source = shutil.copytree(lens_source, tmp_path / "source")
    shutil.copyfile(source / WEIGHTS, source / "\x1b]0;title\a.safetensors")
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "red \\u001b[31m"\n[sdnq]\nweights_dtype = "int8"\n')
    for arguments in (["plan", source], ["convert", source, tmp_path / "out"]):
        outcome = lensconv(*arguments, "--recipe", recipe)
        assert outcome.code == 0
        assert "\\x1b]0;title\\x07" in outcome.stderr
        assert "red \\x1b[31m" in outcome.stderr
        assert "\x1b" not in outcome.stderr


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 48-block model with all its headers and, in place of weights, holes: 16.4 GB that take no space."""
    folder = tmp_path_factory.mktemp("full") / "Lens"
    folder.mkdir()
    write_holes(folder / WEIGHTS, [("F32", name, shape) for name, shape in sorted(lens_tensors(LensConfig()))])
    (folder / "config.json").write_text(json.dumps({"_class_name": CLASS_NAME, **LensConfig().to_dict()}))
    return folder


def test_the_full_size_plan_gives_the_published_figures(full_size: Path, lensconv: Lensconv) -> None:
    result = lensconv("plan", full_size, "--json").result
    sizes = {"bytes_by_dtype": {"F32": 16_416_900_608}, "total_bytes": 16_416_900_608}
    assert result["source"] == {"tensors": 1264, "parameters": 4_104_225_152, **sizes}
    output = result["output"]
    assert (output["tensors"], output["total_bytes"], output["parameters"]) == (2224, 4_301_456_128, 4_104_225_152)
    assert output["bytes_by_dtype"] == {"BF16": 2_942_501_632, "U8": 1_358_954_496}
    assert result["quantized_modules"] == 480
    assert round(100 * result["reduction"]["vs_source"], 1) == 73.8
    assert round(100 * result["reduction"]["vs_bf16"], 1) == 47.6
    assert result["peak_memory_bytes"] < 800_000_000 + (CUDA_LIBRARY_BYTES if torch.version.cuda else 0)
    assert output["files"] == [{"name": WEIGHTS, "bytes": 4_301_714_344}]


def test_a_plan_reads_headers_only(full_size: Path, lens_source: Path, lensconv: Lensconv) -> None:
    """Asked of the kernel: how much this process reads for a plan, once its libraries are there."""

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    assert lensconv("plan", lens_source).code == 0
    before = bytes_read()
    shown = lensconv("plan", full_size).stderr
    assert bytes_read() - before < 20_000_000
    assert "73.8 % smaller than the source, 47.6 % smaller than the source in bfloat16." in " ".join(shown.split())


def test_a_full_disk_is_known_before_anything_is_written(full_size: Path, tmp_path: Path) -> None:
    """On a file system of 2 MB, which the process mounts for itself."""
    script = (
        "mkdir small\nmount -t tmpfs -o size=2M none small\n"
        f"{sys.executable} -m converter convert {full_size} small/out --json; code=$?\nls -A small\nexit $code"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_program("unshare", "--mount", "--map-root-user", "sh", "-c", script, cwd=tmp_path, env=environment)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this machine does not allow to mount a file system")
    assert done.returncode == 3, done.stderr
    content, _, left = done.stdout.rpartition("}\n")
    assert json.loads(content + "}")["error"]["type"] == "DiskError"
    assert left == ""
