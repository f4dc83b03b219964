"""Upstream's figures, the golden test and its faults, and registration, which depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch.nn import functional

import converter.lens
import converter.models.lens.attention as attention_module
import converter.models.lens.modules as transformer_module
from converter.models.lens.golden import GOLDEN_VALUES, golden_error, golden_model, golden_output, passes_golden_test
from converter.models.lens.registration import register
from converter.models.lens.rotary import rotate
from converter.models.lens.transformer import LensTransformer2DModel
from tests.conftest import run_python
from tests.lens.models import GOLDEN_TOLERANCE, TOLERANCE, distance, golden, run
from tests.lens.reference import GOLDEN, golden_inputs


def test_upstreams_figures() -> None:
    model = golden()
    for grid, figures in GOLDEN.items():
        output = run(model, golden_inputs(grid))
        found = {
            "first": output[0, 0, :4],
            "last": output[1, -1, -4:],
            "sums": output.sum(dim=(1, 2)),
            "std": output.std()[None],
            "absmax": output.abs().max()[None],
        }
        for name, expected in figures.items():
            assert distance(found[name], torch.tensor(expected)) <= GOLDEN_TOLERANCE, (grid, name)


def test_the_golden_test_knows_the_golden_model() -> None:
    """It has weights, inputs and figures of its own, which must be those of the reference."""
    model = golden_model(LensTransformer2DModel)
    expected = golden()
    for name, tensor in expected.state_dict().items():
        assert distance(model.state_dict()[name], tensor) <= 2e-7, name
    assert GOLDEN_VALUES.keys() == GOLDEN.keys()
    for grid in GOLDEN:
        assert distance(golden_output(model, grid), run(expected, golden_inputs(grid))) <= TOLERANCE
    assert golden_error(model) <= GOLDEN_TOLERANCE
    assert golden_error(model.to(torch.bfloat16)) <= 0.05
    assert passes_golden_test(LensTransformer2DModel)


class MaskedOnce(LensTransformer2DModel):
    """The mask reaches the first block only, as in the implementation proposed to diffusers."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        for block in self.transformer_blocks[1:]:
            block.register_forward_pre_hook(
                lambda _module, positional, named: (positional, {**named, "attention_mask": None}), with_kwargs=True
            )


class LosesHalves(LensTransformer2DModel):
    """Its rotations pass through a complex buffer, whose imaginary part bfloat16 drops."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.register_buffer("quarter_turn", torch.tensor(1j), persistent=False)
        for block in self.transformer_blocks:
            block.register_forward_pre_hook(self._turn, with_kwargs=True)

    def _turn(self, _module: object, positional: Any, named: Any) -> Any:
        cosine, sine = named["rotary"].unbind(-1)
        turned = cosine + sine * self.quarter_turn
        parts = torch.view_as_real(turned) if turned.is_complex() else torch.stack((turned, 0 * turned), dim=-1)
        return positional, {**named, "rotary": parts.float()}


class LosesDigits(LensTransformer2DModel):
    """Its rotations depend on a buffer that bfloat16 rounds to 1."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.register_buffer("scale", torch.tensor(1.003), persistent=False)
        for block in self.transformer_blocks:
            block.register_forward_pre_hook(self._turn, with_kwargs=True)

    def _turn(self, _module: object, positional: Any, named: Any) -> Any:
        return positional, {**named, "rotary": named["rotary"] * self.scale / 1.003}


@pytest.mark.parametrize("wrong", [MaskedOnce, LosesHalves, LosesDigits])
def test_the_golden_test_sees_faults(wrong: Any) -> None:
    if wrong is not MaskedOnce:
        # Nothing is wrong before the cast, and torch's warning of it does not come through.
        assert golden_error(golden_model(wrong)) <= GOLDEN_TOLERANCE
    assert not passes_golden_test(wrong)


def halves_apart(states: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotation of channels that lie half a head apart, as in other models."""
    order = torch.arange(states.shape[-1]).unflatten(0, (2, -1)).T.flatten()
    return rotate(states[..., order], rotary)[..., order.argsort()]


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [
        (attention_module, "rotate", halves_apart),
        (attention_module, "rotate", lambda states, _: states),
        (transformer_module, "silu", functional.gelu),
        (transformer_module, "silu", lambda states: states * torch.nan),
    ],
)
def test_the_golden_test_sees_wrong_arithmetic(
    module: Any, name: str, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, fault)
    assert not passes_golden_test(LensTransformer2DModel)


FOREIGN = (ZeroDivisionError, AssertionError, AttributeError, ImportError, IndexError, NameError, OSError)


@pytest.mark.parametrize("error", [*FOREIGN, RuntimeError, TypeError, ValueError])
def test_a_class_that_raises_is_another_model(error: type[Exception]) -> None:
    """diffusers' stand-ins for classes whose requirements are missing raise ImportError."""

    def foreign(**_: object) -> None:
        raise error("another model")

    assert not passes_golden_test(foreign)


#: What users write, in a process of its own.
PROGRAM = """
import sys
import converter.lens
import diffusers, transformers
from transformers import LensGptOssEncoder

assert diffusers.LensTransformer2DModel is converter.lens.LensTransformer2DModel
assert diffusers.LensPipeline is converter.lens.LensPipeline
assert transformers.LensGptOssEncoder is LensGptOssEncoder is converter.lens.LensGptOssEncoder
assert type(diffusers.AutoModel.from_pretrained(sys.argv[1])) is converter.lens.LensTransformer2DModel
names = {}
exec("from converter.lens import *", names)
expected = {"LensGptOssEncoder", "LensPipeline", "LensPipelineOutput", "LensTransformer2DModel"}
assert names.keys() - {"__builtins__"} == expected
"""


def test_registration(tmp_path: Path) -> None:
    golden().save_pretrained(tmp_path)
    done = run_python(PROGRAM, tmp_path)
    assert done.returncode == 0, done.stderr


class Right(LensTransformer2DModel):
    """A transformer that diffusers may have one day."""


Theirs = type("Theirs", (), {})
REGISTERED = {"LensTransformer2DModel": diffusers, "LensPipeline": diffusers, "LensGptOssEncoder": transformers}


@pytest.mark.parametrize(
    ("theirs", "kept"),
    [
        ((None, None, None), (False, False, False)),
        ((Right, None, Theirs), (True, False, True)),
        ((Right, Theirs, None), (True, True, False)),
        # A pipeline goes with its own transformer if that is wrong.
        ((MaskedOnce, Theirs, None), (False, False, False)),
        ((Theirs, Theirs, Theirs), (False, False, True)),
    ],
)
def test_registration_beside_classes_of_the_libraries(
    theirs: tuple[Any, ...], kept: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for (name, library), planted in zip(REGISTERED.items(), theirs, strict=True):
        monkeypatch.delattr(library, name)
        if planted is not None:
            monkeypatch.setattr(library, name, planted, raising=False)
    register()
    for (name, library), planted, stays in zip(REGISTERED.items(), theirs, kept, strict=True):
        assert getattr(library, name) is (planted if stays else getattr(converter.lens, name)), name
