"""What CUDA computes otherwise than the CPU, on a CPU: the oracle for conversions on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_DIVISIONS = {_ATEN.div.Tensor, _ATEN.div.Scalar, _ATEN.div_.Tensor, _ATEN.div_.Scalar}
_EXTREMES = {_ATEN.aminmax.default, _ATEN.amin.default, _ATEN.amax.default}


class CudaArithmetic(TorchDispatchMode):  # type: ignore[misc]
    """Computes as CUDA does where that is not what the CPU does, in the thread that enters it.

    A division by a Python number is a product with its reciprocal in float32 (``div_true_kernel_cuda`` of torch), and
    an extreme of 0.0 and -0.0 has either sign; here the other one than on the CPU.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function in _DIVISIONS and _is_scalar(arguments[1]) and arguments[0].is_floating_point():
            return _divide(function, arguments[0], float(arguments[1]))
        result = function(*arguments, **(options or {}))
        if function in _EXTREMES:
            for extreme in result if isinstance(result, tuple) else (result,):
                extreme[extreme == 0] *= -1
        return result


def _divide(function: Any, dividend: torch.Tensor, divisor: float) -> torch.Tensor:
    wide = dividend if dividend.dtype == torch.float64 else dividend.float()
    product = (wide * (1 / torch.full_like(wide, divisor))).to(dividend.dtype)
    return dividend.copy_(product) if function in (_ATEN.div_.Tensor, _ATEN.div_.Scalar) else product


def _is_scalar(value: Any) -> bool:
    """Whether CUDA sees a number of the CPU: a Python number, or a tensor without dimensions."""
    return not isinstance(value, torch.Tensor) or value.ndim == 0


@contextmanager
def cuda_arithmetic() -> Iterator[None]:
    """Compute as CUDA does where a conversion computes on the device ``cpu:0``, in whichever thread."""

    def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            # The device ``cpu`` has no index; tensors do not tell the two apart.
            if "device" in options and options["device"].index is None:
                return function(*arguments, **options)
            with CudaArithmetic():
                return function(*arguments, **options)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            ("kernels.on_device", "quantize_uint4"),
            ("kernels.sdnq", "quantize_with_sdnq"),
            ("execution.deciding", "quantize_with_sdnq"),
        ):
            found = import_module(f"converter.conversion.{module}")
            patch.setattr(found, name, on_device(getattr(found, name)))
        yield
