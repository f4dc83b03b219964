"""What a process on a node must have in common with this one, so that both compute the same."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.errors import ClusterError
from converter.libraries import package_versions

#: Variables that libraries read when they are imported, and that change what is computed or how long it takes. Ray sets
#: ``OMP_NUM_THREADS``, from which another number of threads, and other last bits of sums, would follow.
_PREFIXES = ("SDNQ_", "OMP_", "GOMP_", "MKL_NUM_")
#: How the Hub is reached; a node that has no token of its own uses that of the user.
_HUB_VARIABLES = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET")


def _is_shared(name: str) -> bool:
    return name.startswith(_PREFIXES) or name in _HUB_VARIABLES


def shared_environment() -> dict[str, str]:
    """The variables of this process that processes on nodes have, too."""
    return {name: value for name, value in os.environ.items() if _is_shared(name)}


def adopt_environment(variables: Mapping[str, str]) -> None:
    """Give this process, which has not imported torch yet, the variables of the one that it works for.

    Args:
        variables: from ``shared_environment`` of that one.
    """
    for name in [name for name in os.environ if _is_shared(name) and name not in variables]:
        del os.environ[name]
    os.environ.update(variables)


def describe_software() -> dict[str, Any]:
    """The versions and the code that bytes and figures depend on, by name.

    Raises:
        DependencyError: a package is not installed.
    """
    return {
        "Python": platform.python_version(),
        "lensconv": __version__,
        "lensconv's code": _code_digest(),
        **package_versions(),
    }


def refuse_differences(node: str, found: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse other versions than those of the command.

    Args:
        node: where they are.
        found: from ``describe_software`` there.
        own: of the command.

    Raises:
        ClusterError: something differs.
    """
    for name, value in own.items():
        if found.get(name) != value:
            raise ClusterError(
                f"node {node}: {name} is {found.get(name)}, and {value} here",
                "Install the same versions on all nodes, or stop Ray on this one.",
            )


def _code_digest() -> str:
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
