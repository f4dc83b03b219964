"""Packages that only some commands need, by the extra of lensconv that installs them."""

from __future__ import annotations

from importlib import util

from converter.errors import DependencyError

#: Names of modules by extra. A missing ``lpips``, ``nvidia-ml-py``, ``onnxruntime`` or ``rapidocr`` costs one figure
#: and no command, and the library that loads LoRA adapters asks for ``peft`` itself, so these are not listed.
MODULES: dict[str, tuple[str, ...]] = {
    "ray": ("ray",),
    "measure": (
        "PIL",
        "jinja2",
        "jsonschema",
        "markdown_it",
        "matplotlib",
        "mdit_py_plugins",
        "nh3",
        "scipy",
        "skimage",
        "tomli_w",
    ),
    "rehearsal": ("jinja2", "lz4", "markdown_it", "mdit_py_plugins", "nh3", "pathspec", "starlette", "uvicorn"),
}


def require_extra(extra: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        extra: a key of ``MODULES``.

    Raises:
        DependencyError: one of them is not installed.
    """
    missing = [name for name in MODULES[extra] if util.find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"this command needs {', '.join(missing)}",
            f"In your copy of lensconv, run: pip install --constraint constraints.txt '.[{extra}]'.",
        )
