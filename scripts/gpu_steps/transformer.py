"""Steps 2 and 3: the transformer's output, time and memory, original and quantized, with each way to compute it."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from converter.lens import LensTransformer2DModel
from converter.measurement.benchmark.meter import Meter
from converter.models.lens.int8_chain import enable_int8_chain
from converter.models.sdnq_layers import multiplies_quantized, quantized_layers
from scripts.gpu_steps import models
from scripts.gpu_steps.device import open_device
from scripts.gpu_steps.process import StepRun

#: Blocks of the model whose output is compared with float32.
_CHECKED_DEPTH = 4
#: Rows and columns of image tokens for 512x512 and 1440x1440 pixels, and of the small form; text tokens likewise.
_CHECKED_ROWS, _FULL_ROWS, _SMALL_ROWS = 32, 90, 6
_TEXT_TOKENS, _SMALL_TEXT_TOKENS = 256, 40
#: The most that a layer with int8 products may differ from the same layer with dequantized weights.
_LAYER_TOLERANCE = 0.02
#: The error of the output against float32, in multiples of the error that a CPU makes with the same products.
_OUTPUT_TOLERANCE = 1.5
_WARM_PASSES, _TIMED_PASSES = 2, 5
#: Kernels that a profile names.
_NAMED_KERNELS = 12
_ORIGINAL, _DEQUANTIZED, _INT8, _CHAIN = "bf16", "dequantized", "int8", "int8 chain"


def check_products(run: StepRun) -> None:
    """Step 2: compare a layer with its dequantized form, and the output of a few blocks with float32."""
    source = models.transformer(run, _CHECKED_DEPTH)
    device = open_device(run)
    release = models.quantized(run, source)
    rows, tokens = (_SMALL_ROWS, _SMALL_TEXT_TOKENS) if run.is_small else (_CHECKED_ROWS, _TEXT_TOKENS)
    reference = _reference(run, release, rows, tokens)
    model = _load(release, torch.bfloat16, device)
    call = guided_call(model, rows, tokens)
    layer = model.transformer_blocks[0].img_mlp.w1
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = layer.register_forward_hook(lambda _, given, result: calls.append((given[0], result)))
    for kind in (_INT8, _DEQUANTIZED):
        _set_products(model, kind)
        with torch.no_grad():
            error = _relative_error(model(**call).sample, reference["expected"])
        allowed = _OUTPUT_TOLERANCE * reference[kind]
        run.record(**{kind: {"error": error, "error_on_cpu": reference[kind]}})
        run.check(error <= allowed, f"{kind}: the output's error is {error:.4f}, more than {allowed:.4f}")
    hook.remove()
    states, product = calls[0]
    with torch.no_grad():
        error = _relative_error(product, layer(states))
    run.record(layer_error=error)
    run.check(error <= _LAYER_TOLERANCE, f"a layer's int8 product is off by {error:.4f}, more than {_LAYER_TOLERANCE}")


def measure_step(run: StepRun) -> None:
    """Step 3: one step with guidance at 1440x1440: time, peaks, and a profile where it is slower than the original."""
    source = models.transformer(run)
    is_original = run.part == "original"
    device = open_device(run)
    if not is_original:
        source = models.quantized(run, source)
    model = _load(source, torch.bfloat16, device)
    call = guided_call(model, *((_SMALL_ROWS, _SMALL_TEXT_TOKENS) if run.is_small else (_FULL_ROWS, _TEXT_TOKENS)))
    slowest = 0.0
    for name, prepare in _variants(model, is_original=is_original):
        before = run.left
        if not run.compiles and "blocks" in name:
            reason: str | None = "compiling takes longer than this budget allows"
        elif slowest and before < slowest:
            reason = "no time is left for it"
        else:
            reason = prepare()
        if reason:
            run.record(**{name: {"skipped": reason}})
            continue
        _measure_variant(run, name, model, call)
        slowest = max(slowest, before - run.left)


def _variants(model: Any, *, is_original: bool) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Names of variants, and what prepares the model for them; it returns why it cannot, or nothing.

    The int8 chain comes last, because it cannot be taken back.
    """

    def prepare(kind: str, compiles: bool) -> str | None:
        for module in model.modules():
            module._compiled_call_impl = None
        reason = None if is_original else _set_products(model, kind)
        if compiles and not reason:
            model.compile_repeated_blocks(dynamic=False)
        return reason

    for group in [(_ORIGINAL,)] if is_original else [(_INT8, _DEQUANTIZED), (_CHAIN,)]:
        for suffix, compiles in (("", False), (", blocks", True)):
            for kind in group:
                yield kind + suffix, lambda kind=kind, compiles=compiles: prepare(kind, compiles)  # type: ignore[misc]


def _measure_variant(run: StepRun, name: str, model: Any, call: dict[str, Any]) -> None:
    """Measure one variant, and compare it with the original."""
    figures, output = _time_passes(model, call, run)
    run.check(bool(output.isfinite().all()), f"{name}: the output is not finite")
    file = run.work / "original-output.pt"
    if run.part == "original":
        torch.save(output, file)
    elif file.exists():
        figures["difference_from_original"] = _relative_error(output, torch.load(file))
        original = run.earlier["original"]
        figures |= _against(figures, original[_ORIGINAL])
        same = original.get(name.replace(name.partition(",")[0], _ORIGINAL), {})
        if figures["ms"] > same.get("ms", float("inf")):
            figures["kernels"] = _profile(model, call)
        lower = figures.get("peak_below_original_gb", 1.0)
        run.check(lower > 0, f"{name}: the peak is {-lower:.2f} GB above the original's")
    run.record(**{name: figures})


def _time_passes(model: Any, call: dict[str, Any], run: StepRun) -> tuple[dict[str, Any], torch.Tensor]:
    """Milliseconds of a step and peaks in GB, and the output in float32 on the CPU."""
    meter = Meter(model.device)
    moments = []
    with torch.no_grad():
        start = meter.now()
        for _ in range(_WARM_PASSES):
            output = model(**call).sample
        moments.append(meter.now())
        meter.reset()
        for _ in range(1 if run.is_small else _TIMED_PASSES):
            output = model(**call).sample
            moments.append(meter.now())
    meter.synchronize()
    times = [1000 * meter.seconds(*pair) for pair in pairwise(moments)]
    peaks = {f"peak_{kind}_gb": round(size / 1e9, 3) for kind, size in meter.peaks().items()}
    figures = {"ms": round(statistics.median(times), 2), "all_ms": [round(value, 2) for value in times], **peaks}
    return {**figures, "warm_up_s": round(meter.seconds(start, moments[0]), 2)}, output.float().cpu()


def _against(figures: dict[str, Any], original: dict[str, Any]) -> dict[str, float]:
    """How much less memory a variant allocates than the original, where it was measured."""
    if "peak_allocated_gb" not in figures or "peak_allocated_gb" not in original:
        return {}
    return {"peak_below_original_gb": round(original["peak_allocated_gb"] - figures["peak_allocated_gb"], 3)}


def _profile(model: Any, call: dict[str, Any]) -> list[dict[str, Any]]:
    """The kernels that take the longest in one pass."""
    from torch.profiler import ProfilerActivity, profile

    kind = "device" if torch.cuda.is_available() else "cpu"
    activities = [ProfilerActivity.CUDA] if kind == "device" else [ProfilerActivity.CPU]
    with torch.no_grad(), profile(activities=activities) as profiler:
        model(**call)
    key = f"self_{kind}_time_total"
    found = sorted(profiler.key_averages(), key=lambda event: getattr(event, key), reverse=True)
    return [
        {"name": event.key[:80], "calls": event.count, "ms": round(getattr(event, key) / 1000, 2)}
        for event in found[:_NAMED_KERNELS]
    ]


def guided_call(model: Any, rows: int, text_tokens: int) -> dict[str, Any]:
    """Arguments as the pipeline passes them with guidance: a prompt, and a blank negative one without tokens.

    Args:
        model: which also says device and dtype.
        rows: rows and columns of image tokens.
        text_tokens: of the prompt.
    """
    generator = torch.Generator().manual_seed(0)
    config = model.config

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(model.device, torch.bfloat16).to(model.dtype)

    features = [random(1, text_tokens, config.enc_hidden_dim) for _ in config.selected_layer_index]
    return {
        "hidden_states": random(1, rows * rows, config.in_channels).repeat(2, 1, 1),
        "encoder_hidden_states": [torch.cat((feature, torch.zeros_like(feature))) for feature in features],
        "timestep": torch.full((2,), 0.7, device=model.device, dtype=model.dtype),
        "img_shapes": [(1, rows, rows)],
        "text_lengths": (text_tokens, 0),
    }


def _reference(run: StepRun, release: Path, rows: int, tokens: int) -> dict[str, Any]:
    """The output in float32 with the same weights, and the errors that the CPU makes in bf16, by kind of products."""
    file = run.work / "reference.pt"
    if not file.exists():
        dequantizer: Any = importlib.import_module("sdnq.dequantizer")
        exact = dequantizer.dequantize_sdnq_model(_load(release, torch.bfloat16, torch.device("cpu")))
        # diffusers refuses to cast a model that it still takes for quantized.
        exact.is_quantized = False
        exact = exact.float()
        model = _load(release, torch.bfloat16, torch.device("cpu"))
        with torch.no_grad():
            found = {"expected": exact(**guided_call(exact, rows, tokens)).sample}
            for kind in (_DEQUANTIZED, _INT8):
                _set_products(model, kind)
                output = model(**guided_call(model, rows, tokens)).sample
                found[kind] = _relative_error(output, found["expected"])
        torch.save(found, file)
    result: dict[str, Any] = torch.load(file)
    return result


def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    return LensTransformer2DModel.from_pretrained(folder, torch_dtype=dtype).to(device).eval()


def _set_products(model: Any, kind: str) -> str | None:
    """Choose how quantized layers multiply; return why they cannot, or nothing."""
    options: Any = importlib.import_module("sdnq.loader")
    wanted = kind != _DEQUANTIZED
    options.apply_sdnq_options_to_model(model, use_quantized_matmul=wanted)
    if {multiplies_quantized(layer) for layer in quantized_layers(model)} != {wanted}:
        return "SDNQ cannot multiply in int8 on this device"
    return enable_int8_chain(model, model.device) if kind == _CHAIN else None


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, divided by the norm of what is expected."""
    first, second = found.double().cpu(), expected.double().cpu()
    return round(float((first - second).norm() / second.norm()), 6)
