"""The golden test: a tiny transformer with known weights must compute the figures of upstream's own code.

The figures come from microsoft/Lens at commit 5bf0f0c, in float32 on a CPU. The test finds a mask that only the first
block gets, and position tables that lose half of their values in bfloat16; both have happened in other projects.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from converter.libraries import loading_errors

#: Constructor arguments of the tiny transformer.
GOLDEN_CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "inner_dim": 48,
    "enc_hidden_dim": 24,
    "axes_dims_rope": (4, 6, 6),
    "selected_layer_index": (0, 1, 2),
}
#: Values by grid of tokens: the first four of the first sample, and the last four of the second, which is masked.
GOLDEN_VALUES: dict[tuple[int, int], tuple[tuple[float, ...], tuple[float, ...]]] = {
    (4, 6): ((1.57325, -1.225919, -2.640151, -1.131411), (0.945214, 2.872706, 1.633572, -1.418215)),
    (3, 5): ((1.572559, -1.226359, -2.639868, -1.130709), (0.277239, -2.200969, -2.395448, -0.074439)),
}
#: Largest error in float32.
TOLERANCE = 2e-5
_TEXT_TOKENS = 7
#: Errors of a class that is another model, or that only represents one whose requirements are missing.
_FOREIGN_ERRORS = loading_errors(NameError)


def golden_model(model_class: Any) -> Any:
    """Build the tiny transformer with its known weights.

    Args:
        model_class: built from ``GOLDEN_CONFIG``.
    """
    return _give_weights(model_class(**GOLDEN_CONFIG).eval())


def _give_weights(model: Any) -> Any:
    """Fill every parameter with a wave, around one for norms."""
    state = model.state_dict()
    for number, name in enumerate(sorted(state)):
        wave = torch.sin(0.37 * torch.arange(state[name].numel(), dtype=torch.float64) + 0.11 * number)
        is_norm = "norm" in name and not name.startswith("norm_out")
        state[name] = (0.1 * wave + float(is_norm)).reshape(state[name].shape).float()
    model.load_state_dict(state)
    return model


def golden_output(model: Any, grid: tuple[int, int]) -> torch.Tensor:
    """Compute the tiny transformer's output for the known inputs, two samples, in the dtype of the model.

    Args:
        model: from ``golden_model``.
        grid: rows and columns of image tokens.
    """
    tokens, dtype = grid[0] * grid[1], model.dtype

    def wave(*shape: int, phase: int = 0) -> torch.Tensor:
        values = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        return torch.cos(0.23 * values + phase).reshape(shape).to(dtype)

    mask = torch.ones(2, _TEXT_TOKENS, dtype=torch.bool)
    mask[1, 4:] = False
    with torch.no_grad():
        output: torch.Tensor = model(
            hidden_states=wave(2, tokens, GOLDEN_CONFIG["in_channels"]),
            encoder_hidden_states=[
                wave(2, _TEXT_TOKENS, GOLDEN_CONFIG["enc_hidden_dim"], phase=1 + index)
                for index in range(len(GOLDEN_CONFIG["selected_layer_index"]))
            ],
            encoder_hidden_states_mask=mask,
            timestep=torch.tensor([0.7, 0.25]),
            img_shapes=[(1, *grid)],
            return_dict=False,
        )[0]
    return output


def golden_error(model: Any) -> float:
    """Return the largest difference between the tiny transformer and upstream's figures; NaN if a value is."""
    errors = []
    for grid, (first, last) in GOLDEN_VALUES.items():
        output = golden_output(model, grid).float()
        found = torch.cat((output[0, 0, :4], output[1, -1, -4:]))
        errors.append((found - torch.tensor(first + last)).abs().max())
    # Unlike Python's, torch's maximum does not lose NaN.
    return float(torch.stack(errors).max())


def passes_golden_test(model_class: Any) -> bool:
    """Return whether a class computes what upstream computes, also after a cast to bfloat16 and back.

    The cast rounds the parameters, which are then set again, and the position tables, which are not. A class that
    raises an error, because it is another model, does not pass.
    """
    try:
        model = golden_model(model_class)
        if not golden_error(model) <= TOLERANCE:
            return False
        with warnings.catch_warnings():
            # This is the fault that the test looks for.
            warnings.filterwarnings("ignore", message="Casting complex values to real")
            model = model.to(torch.bfloat16).to(torch.float32)
        return golden_error(_give_weights(model)) <= TOLERANCE
    except _FOREIGN_ERRORS:
        return False
