"""Fixtures that most tests use: tiny sources, and the command line run in this process or in another."""

from __future__ import annotations

import atexit
import ctypes
import gc
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from logging.handlers import BufferingHandler
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
import pytest
from hypothesis import HealthCheck, settings

from converter.cli.main import COMMANDS, cli, run
from converter.console import Console
from tests.benches import SUITE

if TYPE_CHECKING:
    from tests.faulty_hub import FaultyHub
    from tests.loopback import LoopbackHub

pytest.register_assert_rewrite("tests.expected")
ROOT = Path(__file__).resolve().parents[1]
_MANIFEST = "lensconv_manifest.json"
#: Seconds after which a command counts as hanging; the first one in a process imports torch and SDNQ.
TIME_LIMIT = 30.0
# Tests run side by side, a process for each core; threads of torch that wait for each other would take the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the user's shell sets stays out of the tests, and so does a compiler.
for name in [name for name in os.environ if name.startswith(("SDNQ_", "LENSCONV_"))]:
    del os.environ[name]
os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"
#: Plans that tests and their programs keep, those of each test for itself.
_CACHE = Path(tempfile.mkdtemp(prefix="lensconv-tests-"))
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["LENSCONV_CACHE"] = str(_CACHE / "shared")
_cache_numbers = itertools.count()
# Inductor compiles a program for each set of vector instructions, to find out whether the compiler knows those of the
# CPU; here it may believe it, which saves ten seconds.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
# A shell's background jobs ignore SIGINT, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes is the machine's affair.
settings.register_profile("lensconv", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lensconv")


# Nothing that imports make is garbage.
gc.disable()


@pytest.fixture(scope="module", autouse=True)
def _lasting_objects() -> None:
    """Set aside what lasts, so that garbage is not looked for among hundreds of thousands of objects of libraries."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture
def log() -> Iterator[BufferingHandler]:
    """What libraries and this project log.

    pytest's own plugin for this is turned off: for each test it sets levels, which takes milliseconds, since torch and
    its libraries have about a thousand loggers.
    """
    handler = BufferingHandler(capacity=1000)
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def all_commands() -> dict[str, click.Command]:
    """Commands by what users type, with those of groups."""
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        below = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{name} {part}": other for part, other in below.items()} or {name: command}
    return found


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The one object on stdout."""
        parsed: dict[str, Any] = json.loads(self.stdout)
        return parsed


#: What the fixture ``lensconv`` is: it runs a command in this process.
Lensconv = Callable[..., Outcome]
#: What the fixture ``serve`` is: it makes a Hub of a folder.
Serve = Callable[[Path], "LoopbackHub"]


class TookTooLong(BaseException):
    """A command hangs. No ``Exception``, so that no handler for those swallows it."""


@contextmanager
def time_limit(seconds: float = TIME_LIMIT) -> Iterator[None]:
    """Fail the test when the block takes longer."""

    def give_up(number: int, frame: FrameType | None) -> NoReturn:
        raise TookTooLong(number, frame)

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TookTooLong:
        pytest.fail(f"hangs: not done after {seconds} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the user's shell sets out of the tests, and from each test what others have kept."""
    monkeypatch.setenv("TERM", "unknown")
    monkeypatch.setenv("LENSCONV_CACHE", str(_CACHE / str(next(_cache_numbers))))


def call(*arguments: object) -> Outcome:
    """Run a command in this process, streams captured."""
    texts = [str(argument) for argument in arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    console = Console(as_json="--json" in texts, quiet="--quiet" in texts, stdout=stdout, stderr=stderr)
    code = run(texts, console)
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture
def lensconv() -> Lensconv:
    """Run a command in this process, streams captured."""
    return call


def command(*arguments: object) -> list[str]:
    """The command line of lensconv as a process of its own."""
    return [sys.executable, "-m", "converter", *map(str, arguments)]


def run_program(*line: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, from the root of the repository unless told otherwise; its output is kept as text."""
    kept: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    return subprocess.run([str(word) for word in line], **kept | options)


def run_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own."""
    return run_program(*command(*arguments), **options)


def run_python(
    program: str, *arguments: object, flags: tuple[str, ...] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run lines of Python as a process of their own, with flags of the interpreter."""
    return run_program(sys.executable, *flags, "-c", program, *arguments, **options)


def obey_permissions() -> None:
    """Take from a process that root starts what makes it write anywhere: CAP_DAC_OVERRIDE, by PR_CAPBSET_DROP."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline of ``make_several``; nobody changes it."""
    # Imported here: it imports torch, which few tests need.
    from tests.pipelines import make_several

    return make_several(tmp_path_factory.mktemp("several") / "source")


@pytest.fixture(scope="session")
def several_release(several: Path) -> Path:
    """What the default recipe makes of all that can be converted; nobody changes it."""
    from converter import ConvertOptions, convert
    from tests.pipelines import NAMES

    output = several.with_name("release")
    convert(several, output, options=ConvertOptions(components=NAMES))
    return output


@pytest.fixture(scope="session")
def several_steps(several: Path) -> tuple[Path, Path]:
    """A release of the denoiser alone, and one that was made from it, in which a text encoder is quantized as well."""
    from converter import ConvertOptions, convert

    first, second = (several.with_name(name) for name in ("first", "second"))
    convert(several, first)
    convert(first, second, "sdnq-int8", ConvertOptions(components=("text_encoder",)))
    return first, second


@pytest.fixture(scope="session")
def lens_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Lens transformer in F32: two blocks of width 192."""
    from tests.tiny_models import save_model

    return save_model(tmp_path_factory.mktemp("sources") / "lens", "LensTransformer2DModel")


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Lens transformer in several shards."""
    from tests.tiny_models import save_model

    return save_model(tmp_path_factory.mktemp("sharded") / "lens", "LensTransformer2DModel", shard="400KB")


@pytest.fixture(scope="session")
def lens_output(lens_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the default recipe makes of it."""
    from converter import convert

    output = tmp_path_factory.mktemp("outputs") / "lens"
    convert(lens_source, output)
    return output


def names_in(folder: Path) -> list[str]:
    """Names of the entries of a folder, hidden ones too."""
    return sorted(entry.name for entry in folder.iterdir())


def snapshot(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder, by their paths in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with three prompts."""
    file = tmp_path_factory.mktemp("suites") / "three.toml"
    file.write_text(SUITE)
    return file


@pytest.fixture(scope="session")
def tiny_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny Lens pipeline in the layout of microsoft/Lens."""
    from converter.synthesis.synthesize import synthesize

    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    synthesize(folder, preset="tiny")
    return folder


@pytest.fixture(scope="session")
def tiny_release(tiny_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the default recipe makes of it."""
    from converter import convert

    output = tmp_path_factory.mktemp("pipelines") / "tiny-uint4"
    convert(tiny_repo, output)
    return output


@pytest.fixture
def release(tiny_release: Path, tmp_path: Path) -> Path:
    """A release that may be changed."""
    return shutil.copytree(tiny_release, tmp_path / "release")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    """A local Hub that fails on demand."""
    from tests.faulty_hub import faulty_hub
    from tests.hubs import small_hub

    with faulty_hub(small_hub(tmp_path_factory.mktemp("hub"))) as running:
        yield running


@pytest.fixture(scope="module")
def _new_client() -> Iterator[None]:
    """Let the Hub's client begin anew, so that it sees no proxy, and close its connections at the end."""
    from huggingface_hub import close_session

    close_session()
    yield
    close_session()


@pytest.fixture
def plain_client(_new_client: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Leave out what the machine says about the Hub, and waits; look for leftovers."""
    from tests.loopback import TOKEN

    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The client would ask its Hub once for something of its own.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr("converter.hub.retry.FIRST_WAIT", 0.001)
    shadows = tmp_path / "shadows"
    shadows.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shadows))
    yield
    # The first import of torch's compiler in a process makes a folder of its own there.
    assert list(shadows.glob("lensconv-*")) == []


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Make a Hub that has a folder as its only repo."""
    from tests.loopback import Handler, LoopbackHub
    from tests.serving import serving

    with ExitStack() as servers:

        def start(folder: Path) -> LoopbackHub:
            hub = LoopbackHub(folder)
            handler = type("HubHandler", (Handler,), {"hub": hub})
            hub.url = servers.enter_context(serving(handler))
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"{hub.url}/")
            return hub

        yield start


def edit_json(file: Path, **changes: Any) -> None:
    """Change entries of an object in a file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def list_file(release: Path, name: str, content: bytes) -> None:
    """Write a file of a release, and list it in the manifest."""
    (release / name).write_bytes(content)
    entry = {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    forget_file(release, name, entry)


def forget_file(release: Path, name: str, *others: dict[str, Any]) -> None:
    """Take a file out of the manifest of a release, and add others."""
    files = json.loads((release / _MANIFEST).read_text())["files"]
    edit_json(release / _MANIFEST, files=[file for file in files if file["name"] != name] + [*others])
