"""Compile the block that a transformer repeats, and say in one line why that fails.

torch compiles a block when it first runs, and again for each number of text tokens; all blocks and steps share the
result.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from converter.errors import CompilerError, first_line
from converter.models.int8_kernels import kernel_errors

#: Graphs of a block before torch gives up; SDNQ chose as many for its own functions. torch's 8 are less than a suite of
#: prompts needs.
_GRAPHS = 8192
#: Modules that define the errors of compilers.
_COMPILERS = ("torch._dynamo.", "torch._inductor.", "triton.")
#: What Triton says where gcc is missing; it has no class of errors for that.
_NO_C_COMPILER = "Failed to find C compiler"
_NOT_COMPILED = "Or use --compile none."
#: What to install, by what an error says.
_ADVICE = {
    "C++ compiler": "Install a C++ compiler: apt-get install g++.",
    "C compiler": "Install a C compiler: apt-get install gcc.",
    "Python.h": "Install the headers of Python: apt-get install python3-dev.",
    "working triton": "Install Triton: pip install triton.",
}


def compile_blocks(transformer: Any) -> None:
    """Make the repeated blocks of a transformer of diffusers compile when they first run.

    Args:
        transformer: the model. Each shape gets a graph of its own, because kernels for quantized weights need fixed
            shapes.

    Raises:
        CompilerError: torch's compiler is turned off, or does not support this Python.
    """
    try:
        # Where it is turned off, torch runs everything as it is, and says nothing.
        is_on = torch.compile(lambda: torch.compiler.is_compiling(), backend="eager")()
    except RuntimeError as error:
        raise _compiler_error(error, "blocks") from error
    if not is_on:
        raise CompilerError(
            "torch's compiler is turned off, for example by TORCH_COMPILE_DISABLE or TORCHDYNAMO_DISABLE",
            f"Unset the variable. {_NOT_COMPILED}",
        )
    transformer.compile_repeated_blocks(dynamic=False)


@contextmanager
def compiling(kind: str) -> Iterator[None]:
    """Run a model that may be compiled inside the block; nothing is silently run without being compiled.

    Args:
        kind: as ``compile`` in ``GenerateOptions``.

    Raises:
        CompilerError: a compiler is missing or fails.
    """
    try:
        with _strict() if kind == "blocks" else nullcontext():
            yield
    except _errors() as error:
        if not _is_of_compiler(error):
            raise
        cause = getattr(error, "inner_exception", error)
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from error
        raise _compiler_error(cause, kind) from error


def _strict() -> Any:
    """Options of torch's compiler for the block: many graphs, and errors in place of slow code."""
    import torch._dynamo.config as config

    return config.patch(
        recompile_limit=_GRAPHS,
        accumulated_recompile_limit=_GRAPHS,
        fail_on_recompile_limit_hit=True,
        suppress_errors=False,
    )


def _errors() -> tuple[type[Exception], ...]:
    """What compilers and the programs that they start raise; other code raises most of these, too."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    return (*kernel_errors(), FailOnRecompileLimitHit)


def _is_of_compiler(error: Exception) -> bool:
    is_known = any(kind.__module__.startswith(_COMPILERS) for kind in type(error).__mro__)
    return is_known or isinstance(error, subprocess.SubprocessError) or _NO_C_COMPILER in str(error)


def _compiler_error(cause: BaseException, kind: str) -> CompilerError:
    """Say what a compiler said first, and what to install."""
    advice = [text for sign, text in _ADVICE.items() if sign.lower() in str(cause).lower()][:1]
    advice.append(_NOT_COMPILED if kind == "blocks" else "Or set SDNQ_USE_TORCH_COMPILE=0.")
    return CompilerError(f"the transformer cannot be compiled: {first_line(cause)}", " ".join(advice))
