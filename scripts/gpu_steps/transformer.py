"""Steps 2 and 3: the transformer's output, time and memory, original and quantized, with each way to compute it."""

from __future__ import annotations

import importlib
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from converter.errors import CompilerError
from converter.lens import LensTransformer2DModel
from converter.libraries import sdnq_compiles
from converter.measurement.benchmark.meter import Meter
from converter.measurement.generation.compiling import compile_blocks, compiling
from converter.models.int8_kernels import find_int8_kernel
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
    run.record(sdnq_compiles=sdnq_compiles(), int8_kernel=find_int8_kernel(device).name)
    rows, tokens = (_SMALL_ROWS, _SMALL_TEXT_TOKENS) if run.is_small else (_CHECKED_ROWS, _TEXT_TOKENS)
    reference = _reference(run, release, rows, tokens)
    model = _load(release, torch.bfloat16, device)
    call = guided_call(model, rows, tokens)
    layer = model.transformer_blocks[0].img_mlp.w1
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = layer.register_forward_hook(lambda _, given, result: calls.append((given[0], result)))
    for kind in (_INT8, _DEQUANTIZED):
        if reason := _set_products(model, kind):
            run.check(False, f"{kind}: {reason}")
            continue
        with torch.no_grad(), compiling("none"):
            error = _relative_error(model(**call).sample, reference["expected"])
        allowed = _OUTPUT_TOLERANCE * reference[kind]
        run.record(**{kind: {"error": error, "error_on_cpu": reference[kind]}})
        run.check(error <= allowed, f"{kind}: the output's error is {error:.4f}, more than {allowed:.4f}")
    hook.remove()
    if len(calls) < 2:
        return
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
    if not is_original:
        run.record(sdnq_compiles=sdnq_compiles(), int8_kernel=find_int8_kernel(device).name)
    call = guided_call(model, *((_SMALL_ROWS, _SMALL_TEXT_TOKENS) if run.is_small else (_FULL_ROWS, _TEXT_TOKENS)))
    slowest = 0.0
    for compile_kind in ("none", "blocks"):
        for kind in (_ORIGINAL,) if is_original else (_INT8, _CHAIN, _DEQUANTIZED):
            name = kind if compile_kind == "none" else f"{kind}, {compile_kind}"
            before = run.left
            reason = _reason_against(run, compile_kind, slowest)
            try:
                with compiling(compile_kind):
                    reason = reason or _prepare(model, kind, compile_kind)
                    if reason:
                        run.record(**{name: {"skipped": reason}})
                        continue
                    _measure_variant(run, name, model, call)
            except CompilerError as error:
                run.check(False, f"{name}: {error.with_hint}")
            slowest = max(slowest, before - run.left)


def _reason_against(run: StepRun, compile_kind: str, slowest: float) -> str | None:
    """Return why a variant is not measured; None if it is.

    Args:
        run: the step.
        compile_kind: whether blocks are compiled, as in ``GenerateOptions``.
        slowest: seconds of the slowest variant so far.
    """
    if compile_kind == "blocks" and not run.compiles:
        return "compiling takes longer than this budget allows"
    return "no time is left for it" if slowest and run.left < slowest else None


def _prepare(model: Any, kind: str, compile_kind: str) -> str | None:
    """Prepare the model for a variant; return why it cannot compute so, or nothing."""
    for module in model.modules():
        module._compiled_call_impl = None
    if model.device.type == "cuda":
        # What torch has reserved for other variants does not count for this one.
        torch.cuda.empty_cache()
    reason = None if kind == _ORIGINAL else _set_products(model, kind)
    if compile_kind == "blocks" and not reason:
        compile_blocks(model)
    return reason


def _measure_variant(run: StepRun, name: str, model: Any, call: dict[str, Any]) -> None:
    """Measure one variant, and compare it with the original."""
    figures, output = _time_passes(model, call, run)
    run.check(bool(output.isfinite().all()), f"{name}: the output is not finite")
    file = run.work / "original-output.pt"
    if name == _ORIGINAL:
        torch.save(output, file)
    original: dict[str, Any] = run.figures if run.part == "original" else run.earlier.get("original", {})
    if name != _ORIGINAL and _ORIGINAL in original:
        figures["difference_from_original"] = difference = _relative_error(output, torch.load(file))
        figures |= _against(figures, original[_ORIGINAL])
        # The first variant is the plain one.
        usual = run.figures.get(_INT8, {}).get("difference_from_original", difference)
        run.check(difference <= _OUTPUT_TOLERANCE * usual, f"{name}: differs from the original by {difference:.4f}")
        lower = figures.get("peak_below_original_gb", 1.0)
        run.check(lower > 0 or run.part == "original", f"{name}: the peak is {-lower:.2f} GB above the original's")
    # A profile may fail, and then the figures stay.
    run.record(**{name: figures})
    same = original.get(name.replace(name.partition(",")[0], _ORIGINAL), {})
    if figures["ms"] > same.get("ms", float("inf")):
        run.record(**{name: {"kernels": _profile(model, call)}})


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

    kind = "device" if model.device.type == "cuda" else "cpu"
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
    if wanted and (kernel := find_int8_kernel(model.device)).name == "none":
        return f"no kernel computes int8 products: {kernel.reason}"
    for block in model.transformer_blocks:
        block.int8_chain = None
    options.apply_sdnq_options_to_model(model, use_quantized_matmul=wanted)
    if {multiplies_quantized(layer) for layer in quantized_layers(model)} != {wanted}:
        return "SDNQ does not change how its layers multiply"
    return enable_int8_chain(model, model.device) if kind == _CHAIN else None


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, divided by the norm of what is expected."""
    first, second = found.double().cpu(), expected.double().cpu()
    return round(float((first - second).norm() / second.norm()), 6)
