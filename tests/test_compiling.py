"""``--compile blocks``: the same image, one line where it fails, and nothing is compiled while a benchmark measures."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo import config
from torch._dynamo.backends.registry import get_default_backend, set_default_backend
from torch._dynamo.utils import counters
from torch._inductor.exc import CppCompileError

from converter.errors import CompilerError, LensconvError, MemoryLimitError
from converter.measurement.benchmark.job import GENERATED, GENERATING, Job, Task
from converter.measurement.benchmark.session import Session
from converter.measurement.benchmark.worker import _work
from converter.measurement.generation.compiling import compiling
from converter.measurement.generation.loading import blaming, load_pipeline, load_text_encoder, load_tokenizer
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.repo import open_pipeline
from converter.measurement.generation.settings import choose_settings
from tests.conftest import run_process
from tests.faults import raising
from tests.generations import SMALL
from tests.lens import pipelines

pytestmark = pytest.mark.long
CPU = torch.device("cpu")


@pytest.fixture
def backend() -> Iterator[Callable[[Any], None]]:
    """Choose what compiles, in place of Inductor."""
    before = get_default_backend()
    torch.compiler.reset()
    yield set_default_backend
    set_default_backend(before)
    torch.compiler.reset()


def load(repo: Path, **options: Any) -> Any:
    opened = open_pipeline(repo)
    encoder = load_text_encoder(opened, torch.float32, CPU, unpacks=False)
    pipe = load_pipeline(
        *(opened, torch.float32, CPU, options.pop("offload", "none")),
        text_encoder=encoder,
        tokenizer=load_tokenizer(opened),
        **options,
    )
    return pipelines.quiet(pipe)


def latents(pipe: Any, **options: Any) -> torch.Tensor:
    """Of two steps from the noise of one seed."""
    generator = torch.Generator().manual_seed(1)
    drawn: torch.Tensor = pipelines.draw(pipe, generator=generator, num_inference_steps=2, **options)
    return drawn


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_blocks_are_compiled(offload: str, tiny_repo: Path, backend: Callable[[Any], None]) -> None:
    """With sequential offloading, what is between the layers is, and nothing again in the next step or block."""
    backend("eager")
    expected, pipe = latents(load(tiny_repo)), load(tiny_repo, offload=offload, compiles=True)
    counters.clear()
    with compiling("blocks"):
        # Offloading alone changes the last bits, because it copies the weights to other addresses.
        torch.testing.assert_close(latents(pipe), expected, **pipelines.TOLERANCE)
        graphs = counters["stats"]["unique_graphs"]
        assert graphs == 1 if offload == "model" else graphs > 1
        torch.testing.assert_close(latents(pipe), expected, **pipelines.TOLERANCE)
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_missing_compiler_is_one_line(tiny_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    # Not what earlier runs have compiled.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    options = ("--prompt", "x", "--out", tmp_path / "x.png", *SMALL, "--compile", "blocks", "--quiet")
    done = run_process("generate", tiny_repo, *options)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the transformer cannot be compiled: No working C++ compiler found")
    assert line.endswith("Install a C++ compiler: apt-get install g++. Or use --compile none.")
    assert not (tmp_path / "x.png").exists()


MISSING = RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")
COMMAND = subprocess.CalledProcessError(1, ["gcc", "main.c"])
HEADERS = CppCompileError(["g++", "main.cpp"], "main.cpp:1: fatal error: Python.h: No such file or directory")
#: By its module alone this is known as Triton's, which need not be installed.
TRITON = type("CompilationError", (RuntimeError,), {"__module__": "triton.compiler.errors"})("at 5:0: bad")


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (RuntimeError("first\nsecond"), CompilerError, "compiled: first. Or use --compile none."),
        (MISSING, CompilerError, "Install a C compiler: apt-get install gcc. Or use --compile none."),
        (COMMAND, CompilerError, "compiled: Command '['gcc', 'main.c']' returned non-zero exit status 1."),
        (HEADERS, CompilerError, "Install the headers of Python: apt-get install python3-dev. Or use --compile none."),
        (TRITON, CompilerError, "compiled: at 5:0: bad. Or use --compile none."),
        (torch.OutOfMemoryError("CUDA out of memory."), MemoryLimitError, "there is not enough memory: CUDA out of"),
    ],
)
def test_what_a_compiler_says_when_it_fails(
    fault: Exception, kind: type[LensconvError], said: str, backend: Callable[[Any], None]
) -> None:
    """While it compiles, or later, in its own code; without ``--compile``, SDNQ may still compile."""
    backend(raising(fault))
    compiled = torch.compile(torch.neg)
    with pytest.raises(kind, match=None) as caught, blaming(Path("repo")), compiling("blocks"):
        compiled(torch.ones(1))
    assert said in caught.value.with_hint
    assert "\n" not in caught.value.with_hint
    if kind is CompilerError and fault.args[0] != "first\nsecond":
        with pytest.raises(CompilerError, match="cannot be compiled") as caught, compiling("none"):
            raise fault
        assert caught.value.hint.endswith("Or set SDNQ_USE_TORCH_COMPILE=0.")


def test_nothing_is_silently_left_uncompiled(
    tiny_repo: Path, backend: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where compiling is turned off, unsupported, fails, or is done too often; other errors stay what they are."""
    backend("eager")
    compiled = torch.compile(torch.neg, dynamic=False)
    with monkeypatch.context() as changed:
        changed.setattr("converter.measurement.generation.compiling._GRAPHS", 2)
        with pytest.raises(CompilerError, match="recompile_limit"), compiling("blocks"):
            [compiled(torch.ones(size)) for size in range(3, 9)]
    with pytest.raises(LookupError), compiling("blocks"):
        raise LookupError
    backend(raising(ValueError("bad")))
    with config.patch(suppress_errors=True), pytest.raises(CompilerError, match="bad"), compiling("blocks"):
        torch.compile(torch.abs)(torch.ones(1))
    with config.patch(disable=True), pytest.raises(CompilerError, match="turned off") as caught:
        load(tiny_repo, compiles=True)
    assert caught.value.hint == "Unset the variable. Or use --compile none."
    monkeypatch.setattr(sys, "version_info", (3, 99))
    with pytest.raises(CompilerError, match="not supported on Python"):
        load(tiny_repo, compiles=True)


@pytest.mark.parametrize(("mode", "lengths"), [("standard", 2), ("offload", 4)])
def test_nothing_is_compiled_while_images_are_measured(
    mode: str, lengths: int, tiny_repo: Path, backend: Callable[[Any], None]
) -> None:
    """Prompts of many lengths: all but the first image find everything compiled.

    There are more lengths than torch would compile for: the default, which is eight, is lower here.
    """
    backend("eager")
    # Garbage is collected before each image, which takes long in a process with this many objects.
    gc.freeze()
    repo = open_pipeline(tiny_repo)
    options = GenerateOptions(steps=2, height=32, width=32, compile="blocks")
    settings = [choose_settings(repo, "a" + " b" * number, options) for number in range(lengths)]
    tasks = [Task(f"P{number}", asdict(chosen), None) for number, chosen in enumerate((*settings, settings[0]))]
    # In standard mode, the first image warms up.
    first = [Task("", asdict(settings[0]), None)] if mode == "standard" else []
    job = Job(str(tiny_repo), {}, {"standard": "none", "offload": "model"}[mode], "cpu", "bfloat16", [*first, *tasks])
    said, before, graphs = list[str](), list[int](), dict[str, int]()
    counters.clear()

    def say(event: str, **content: Any) -> None:
        count = counters["stats"]["unique_graphs"]
        if event == GENERATING:
            before.append(count)
        elif event == GENERATED:
            said.append(content["key"])
            graphs[content["key"]] = count - before[-1]

    with config.patch(recompile_limit=lengths - 1, accumulated_recompile_limit=lengths - 1):
        _work(job, say, ())
    keys = [task.key for task in tasks]
    assert [graphs[key] for key in keys] == [0 if first else 1] + [0] * lengths
    assert counters["stats"]["unique_graphs"] == lengths
    warm = [""] * (lengths - 1)
    assert said == (["", *warm, *keys] if first else [keys[0], *warm, *keys[1:]])


def test_who_warms_up(tiny_repo: Path) -> None:
    """Only where something compiles: with --compile blocks, or on a GPU."""
    repo = open_pipeline(tiny_repo)
    for kind, device, expected in (("none", "cpu", []), ("blocks", "cpu", ["C", "D"]), ("none", "cuda", ["C", "D"])):
        tasks = []
        for key, prompt in {"A": "x", "B": "y", "C": "x y z", "D": "x y", "E": "y z"}.items():
            tasks.append(Task(key, asdict(choose_settings(repo, prompt, GenerateOptions(compile=kind))), f"{key}.png"))
        session = Session(Job(str(tiny_repo), {}, "none", "cpu", "bfloat16", tasks))
        session.pipeline = load(tiny_repo)
        session.device = torch.device(device)
        found = session.warm_ups(tasks[0], tasks[1:])
        assert [task.key for task in found] == expected
        assert {(task.settings["steps"], task.image) for task in found} <= {(1, None)}
