"""The heavy libraries, imported quietly by one function.

Importing SDNQ imports torch, diffusers and transformers too, which takes seconds; nothing imports them before it must.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType

from converter.errors import DependencyError
from converter.memory import require_free_memory

#: Packages whose versions decide what a conversion writes.
DECISIVE_PACKAGES = ("sdnq", "torch", "diffusers", "transformers", "safetensors")

#: Memory without which the import of torch and SDNQ ends in a kill, in bytes: the least that was measured with the
#: versions in constraints.txt, rounded down. Their libraries take more, but the system can drop those pages.
LIBRARY_BYTES = 262_000_000
#: The same for all that generates an image.
PIPELINE_BYTES = 330_000_000
#: The same for a comparison of weights with their source.
COMPARING_BYTES = 290_000_000

#: Whether SDNQ compiles its functions. SDNQ reads it once, when it is imported; if it is not set, SDNQ compiles a test
#: function then. lensconv quantizes eagerly, since compiled functions were slower and not identical.
COMPILE_VARIABLE = "SDNQ_USE_TORCH_COMPILE"
#: How threads of OpenMP wait for each other; the library reads it once, when torch is imported. By default they spin
#: for milliseconds, so beside busy programs every operation of torch waits for its turn. If they sleep at once, they
#: have to be woken for every operation. GNU's library, which torch has on Linux, takes the second variable before the
#: first: turns of about 10 ns. 1000 were the fastest beside two busy programs, of 0 to 100,000; see docs/measuring.md.
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
#: Threads that convert import SDNQ, too; the variable must not change while one of them does.
_IMPORTING = threading.RLock()
#: Names of modules that are imported, with quiet libraries. Many are asked for with every module or weight of a model,
#: and setting a log level takes longer than all else, as torch and its libraries have hundreds of loggers.
_loaded: set[str] = set()

#: What SDNQ's functions raise for options or sizes that they cannot work with.
QUANTIZING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    re.error,
)


def loading_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What SDNQ, diffusers and transformers raise for a checkpoint that they cannot build or load, and others.

    This imports the packages that define the errors.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (*QUANTIZING_ERRORS, ImportError, OSError, SafetensorError, StrictDataclassError, *others)


#: Packages that are installed under another name than that of their module.
_DISTRIBUTIONS = {"PIL": "pillow", "google": "protobuf", "skimage": "scikit-image", "yaml": "pyyaml"}
#: How libraries name a package that an import lacks, the surest first.
_PACKAGE_PATTERNS = (
    r"'([\w.-]+)' package",
    r"pip install (?:-U |--upgrade )?[\"'`]?([\w-]+(?:\.[\w-]+)*)",
    r"requires? (?:the )?[\"'`]?([\w.-]+)[\"'`]? (?:library|package|backend)",
)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide the bytes, without importing them.

    Raises:
        DependencyError: one is not installed.
    """
    # Imported here: it takes a fifth of the start of a command.
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in DECISIVE_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError as error:
            raise DependencyError(f"the package {name} is not installed", f"pip install {name}") from error
    return found


def quantization_environment() -> dict[str, str]:
    """The environment variables with which SDNQ quantizes, sorted by name: the user's, and lensconv's own default."""
    return dict(sorted({COMPILE_VARIABLE: "0", **user_environment()}.items()))


def user_environment() -> dict[str, str]:
    """The environment variables of SDNQ that the user has set, sorted by name."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("SDNQ_")}


def waiting_environment() -> dict[str, str]:
    """The environment variables by which threads of OpenMP wait while images are generated.

    Returns:
        Those that the user has set; if there are none, lensconv's own.
    """
    return {name: os.environ[name] for name in _WAITING if name in os.environ} or dict(_WAITING)


def sdnq_compiles() -> bool | None:
    """Whether SDNQ compiles its functions in this process; None if it is not imported."""
    common = sys.modules.get("sdnq.common")
    return None if common is None else bool(common.check_torch_compile())


def library_threads() -> int:
    """The number of threads that torch computes with, by environment and system, without importing torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return len(os.sched_getaffinity(0))


def is_loaded() -> bool:
    """Whether SDNQ has been imported already, so that planning with it does not have to wait for the import."""
    return "sdnq" in sys.modules


def are_untouched() -> bool:
    """Whether no library that plans has been imported yet, so that no program can have changed it in this process."""
    return sys.modules.keys().isdisjoint(("diffusers", "sdnq", "transformers"))


def require_library_memory(needed: int = LIBRARY_BYTES) -> None:
    """Refuse to import torch and what works with it where that cannot fit; called before each first import.

    Raises:
        MemoryLimitError: there is too little memory.
    """
    if "torch" not in sys.modules:
        require_free_memory(needed, "importing torch and the libraries that it works with")


def load_library(
    name: str, *, compiles: bool = False, generates: bool = False, needed: int = LIBRARY_BYTES
) -> ModuleType:
    """Import a module of the heavy libraries, or one that imports them, without their start-up work and log messages.

    Args:
        name: of the module.
        compiles: whether SDNQ may compile its functions if this imports it, which only inference on a GPU needs. The
            user's own ``SDNQ_USE_TORCH_COMPILE`` decides instead if it is set.
        generates: whether this process generates images, for whose many small operations waiting threads should not
            spin for long if this imports torch. The user's own ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` decides
            instead if it is set.
        needed: bytes of memory without which the import is not tried.

    Raises:
        DependencyError: it cannot be imported.
        MemoryLimitError: there is too little memory for it.
    """
    if name in _loaded and name in sys.modules:
        return sys.modules[name]
    require_library_memory(needed)
    # SDNQ warns of missing Triton and OpenVINO kernels, which only inference needs.
    logging.getLogger("sdnq").setLevel(logging.ERROR)
    try:
        with _IMPORTING, _compile_default(compiles), _wait_default(generates), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = sys.modules.get(name) or _import(name)
            for library in ("diffusers", "transformers"):
                if library in sys.modules:
                    log = importlib.import_module(f"{library}.utils.logging")
                    log.set_verbosity_error()
                    log.disable_progress_bar()
            _loaded.add(name)
            return module
    except ImportError as error:
        raise missing_package(f"{name} cannot be imported", error) from error


@contextmanager
def _compile_default(compiles: bool) -> Iterator[None]:
    """Keep SDNQ from compiling if the block imports it; processes started later do not inherit this."""
    if compiles or "sdnq.common" in sys.modules:
        yield
    else:
        with _default_variable(COMPILE_VARIABLE, "0"):
            yield


@contextmanager
def _wait_default(generates: bool) -> Iterator[None]:
    """Keep waiting threads from spinning for long if the block imports torch and the process generates images."""
    with ExitStack() as stack:
        if generates and "torch" not in sys.modules:
            for name, value in waiting_environment().items():
                stack.enter_context(_default_variable(name, value))
        yield


@contextmanager
def _default_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable while the block runs, unless the user has set it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


def missing_package(what: str, error: ImportError) -> DependencyError:
    """Return the error for a package that is missing or too old.

    Args:
        what: what needs it; the message begins with it.
        error: what Python or a library raises; libraries name the package in the text only.

    Raises:
        ImportError: a module of lensconv itself is missing.
    """
    package = (error.name or "").partition(".")[0]
    if package == "converter":
        raise error
    text = " ".join(str(error).split())
    if not package:
        named = next((found for pattern in _PACKAGE_PATTERNS if (found := re.search(pattern, text))), None)
        package = named[1].lower() if named else ""
    package = _DISTRIBUTIONS.get(package, package)
    advice = f"pip install --upgrade {package}" if package else "Install what is missing."
    return DependencyError(f"{what}: {text}", advice)


def _import(name: str) -> ModuleType:
    """Import a module, and exclude its objects, which are never freed, from garbage collection."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
