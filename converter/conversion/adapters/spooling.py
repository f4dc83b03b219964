"""Moving what a converter of diffusers made into a file, so that an adapter takes memory only where it is added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from converter.checkpoint.header import read_header
from converter.checkpoint.source import SourceTensor
from converter.conversion.adapters.modules import Factor
from converter.conversion.adapters.resolving import ResolvedAdapter
from converter.errors import lacking
from converter.libraries import load_library


def spool_factors(adapter: ResolvedAdapter, file: Path) -> ResolvedAdapter:
    """The same adapter, of which no tensor is held in memory.

    Args:
        adapter: what to move; it is returned as it is if it holds nothing.
        file: where to; it must stay until all modules are converted.

    Raises:
        DiskError: there is no space.
        OSError: the file cannot be written for another reason.
    """
    held = {name: factor.held for name, factor in _factors(adapter) if factor.held is not None}
    if not held:
        return adapter
    # Queries, keys and values often have one first factor, and their second factors are parts of one tensor.
    first = {(tensor.data_ptr(), tensor.shape): name for name, tensor in reversed([*held.items()])}
    names = {name: first[tensor.data_ptr(), tensor.shape] for name, tensor in held.items()}
    content = {name: tensor.clone() for name, tensor in held.items() if names[name] == name}
    try:
        # The function that writes files has an error of its own for what the system refuses.
        file.write_bytes(load_library("safetensors.torch").save(content))
    except OSError as error:
        raise lacking(error, file) or error from error
    header = read_header(file)
    stored = {
        name: SourceTensor(entry, file, header.data_start + entry.start) for name, entry in header.tensors.items()
    }

    def moved(name: str, factor: Factor) -> Factor:
        return Factor(factor.shape, stored[names[name]]) if name in names else factor

    modules = {
        component: {
            path: replace(
                module,
                down=moved(f"{component}.{path}.down", module.down),
                up=moved(f"{component}.{path}.up", module.up),
                bias=module.bias and moved(f"{component}.{path}.bias", module.bias),
            )
            for path, module in found.items()
        }
        for component, found in adapter.modules.items()
    }
    return replace(adapter, modules=modules)


def _factors(adapter: ResolvedAdapter) -> Iterator[tuple[str, Factor]]:
    """All factors and biases, with names of their own."""
    for component, found in adapter.modules.items():
        for path, module in found.items():
            yield f"{component}.{path}.down", module.down
            yield f"{component}.{path}.up", module.up
            if module.bias is not None:
                yield f"{component}.{path}.bias", module.bias
