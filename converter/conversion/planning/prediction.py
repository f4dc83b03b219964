"""The plan for Lens without torch, so that a conversion can start at once.

Importing SDNQ and running it on the empty model takes seconds, half as long as the conversion itself. For Lens and a
static uint4 recipe its decisions follow from names and shapes. A conversion starts with this prediction while SDNQ
plans in a second process, and the output appears only if SDNQ made the same plan: a wrong prediction costs time, but
never a wrong byte.
"""

from __future__ import annotations

from typing import Any

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.layout import TensorSpec
from converter.checkpoint.source import Checkpoint
from converter.conversion.planning.methods import FUSED_GROUP, plan_methods
from converter.conversion.planning.plan import Plan, PlannedModule, PlannedTensor
from converter.conversion.planning.rules import linear_parts
from converter.conversion.recipe.recipe import Recipe, resolve_rules, unmatched_rules
from converter.errors import UnsupportedCheckpoint
from converter.models.config import model_config
from converter.models.lens.layout import CLASS_NAME, LensConfig, lens_tensors

#: Modules of Lens that SDNQ skips by name in every recipe (``common_skip_keys`` of SDNQ 0.2.8).
SKIPPED_MODULES = ("time_text_embed", "txt_in", "img_in", "norm_out", "proj_out")
#: SDNQ leaves smaller weights alone (``minimum_allowed_numel``, ``minimum_allowed_channel_size``).
MINIMUM_ELEMENTS = 16384
MINIMUM_CHANNELS = 32
#: The options that this module understands, with the values at which it does; others must be absent.
_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "weights_dtype": ("uint4",),
    "group_size": (0, FUSED_GROUP),
    "use_quantized_matmul": (False, True),
    "quantized_matmul_dtype": ("int8",),
    "dequantize_fp32": (False, True),
}


def predict_plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan | None:
    """Predict what SDNQ will decide.

    Returns:
        None when the model is not Lens, or recipe or tensors are not of the simple kind that is understood here; the
        conversion then has to wait for SDNQ.
    """
    simple = all(value in _UNDERSTOOD.get(name, ()) for name, value in recipe.options.items())
    if not simple or "weights_dtype" not in recipe.options or not all(rule.keep for rule in recipe.rules):
        return None
    shapes = checkpoint.shapes
    config = model_config(checkpoint)
    if config.class_name != CLASS_NAME:
        return None
    try:
        expected = list(lens_tensors(LensConfig.from_dict(config.content)))
    except UnsupportedCheckpoint:
        return None
    floats = all(tensor.entry.dtype in WEIGHT_DTYPES for tensor in checkpoint.tensors.values())
    if dict(expected) != shapes or not floats or checkpoint.config.get("quantization_config") is not None:
        return None
    quantizable = [name.removesuffix(".weight") for name, shape in expected if _is_quantizable(name, shape)]
    kept = resolve_rules(recipe, quantizable, shapes, CLASS_NAME)
    tensors: list[PlannedTensor] = []
    modules: dict[str, PlannedModule] = {}
    delayed: list[PlannedTensor] = []
    for name, shape in expected:
        path = name.removesuffix(".weight")
        # A module's parts follow its weight and its bias.
        if delayed and not name.startswith(delayed[0].source.removesuffix("weight")):
            tensors += delayed
            delayed = []
        if not _is_quantizable(name, shape) or path in kept or path.startswith(SKIPPED_MODULES):
            tensors.append(PlannedTensor(TensorSpec(name, "BF16", shape), name))
            continue
        rows, channels = shape
        parts = linear_parts(path, (rows, channels), recipe.options)
        if parts is None or channels % FUSED_GROUP:
            return None
        modules[name] = PlannedModule(path, name, shape, _module_options(recipe))
        weight, *delayed = (PlannedTensor(spec, name, spec.name.rpartition(".")[2]) for spec in parts)
        tensors.append(weight)
    return Plan(
        CLASS_NAME,
        "diffusion_pytorch_model",
        (*tensors, *delayed),
        modules,
        assumed_config=config.assumed,
        unmatched_rules=unmatched_rules(recipe, quantizable, shapes, CLASS_NAME),
    )


def _is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is the weight of a linear that is large enough for SDNQ."""
    return (
        name.endswith(".weight")
        and len(shape) == 2
        and shape[1] >= MINIMUM_CHANNELS
        and shape[0] * shape[1] >= MINIMUM_ELEMENTS
    )


def _module_options(recipe: Recipe) -> dict[str, Any]:
    return {
        "group_size": 0,
        "dequantize_fp32": True,
        "torch_dtype": "bfloat16",
        "layer_class_name": "Linear",
        "use_dynamic_quantization": False,
        **recipe.options,
    }


def plans_agree(predicted: Plan, actual: Plan) -> bool:
    """Whether two plans put the same bytes into the same slots, on the same assumptions."""
    same = ("class_name", "stem", "tensors", "ignored", "index_metadata", "assumed_config")
    return all(getattr(predicted, name) == getattr(actual, name) for name in same) and (
        plan_methods(predicted) == plan_methods(actual)
    )
