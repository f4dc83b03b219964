"""From a prompt to its features: the conversation around it, its tokens, and the output of the text encoder."""

from __future__ import annotations

import json
import re
import shutil
from datetime import date
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GptOssConfig, GptOssForCausalLM, Mxfp4Config
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer

from converter.lens import LensGptOssEncoder
from converter.models.lens.features import PromptFeatures, encode_prompts, join_features
from converter.models.lens.mxfp4 import unpacking_notice
from converter.models.lens.prompts import render_prompt, tokenize_prompts
from converter.synthesis.tokenizer import build_tokenizer
from tests.conftest import snapshot
from tests.lens import reference
from tests.lens.models import calls_of
from tests.lens.prompts import (
    DAY,
    LAYERS,
    MXFP4,
    PREFIX,
    REAL_CONFIG,
    SUFFIX,
    conversation,
    notices,
    pack_experts,
    stop_the_clock,
)

DAYS = [DAY, date(1999, 12, 31), date(2000, 1, 1), date(2024, 2, 29), date(999, 9, 9), date(9999, 10, 10)]
SMALL_CONFIG = REAL_CONFIG | {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 256}
SMALL_CONFIG |= {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL_CONFIG |= {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
SMALL_CONFIG |= {"num_experts_per_tok": 2, "num_local_experts": 4}
#: What is said before weights are unpacked.
NOTICE = (
    "the MXFP4 text encoder cannot stay packed here (that takes a GPU of compute capability 7.5 or more, Triton and "
    "the package kernels): it is unpacked, and takes {} of memory"
)

#: Ids and mask.
Tokens = tuple[torch.Tensor, torch.Tensor]
#: The folder of a checkpoint, and its numbers.
Packed = tuple[Path, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def loaded_encoder(tiny_repo: Path) -> Any:
    """24 layers with a sliding window of 128, in float32."""
    return LensGptOssEncoder.from_pretrained(tiny_repo / "text_encoder", dtype=torch.float32)


@pytest.fixture
def encoder(loaded_encoder: Any) -> Any:
    loaded_encoder.set_selected_layers(LAYERS)
    return loaded_encoder


@pytest.fixture(scope="module")
def plain_model(tiny_repo: Path) -> Any:
    return GptOssForCausalLM.from_pretrained(tiny_repo / "text_encoder", dtype=torch.float32)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    """Ids and mask of three texts: longer than the sliding window, shorter, and of one token."""
    lengths = torch.tensor([[150], [40], [1]])
    mask = (torch.arange(150) < lengths).long()
    return torch.randint(0, 1400, (3, 150), generator=torch.Generator().manual_seed(2)) * mask, mask


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """A small checkpoint whose experts are in MXFP4, and the numbers in it."""
    folder = tmp_path_factory.mktemp("packed")
    torch.manual_seed(0)
    state, dense = pack_experts(GptOssForCausalLM(GptOssConfig.from_dict(SMALL_CONFIG)).state_dict())
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**SMALL_CONFIG, "quantization_config": MXFP4}))
    return folder, dense


def echo(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
    """An encoder of two layers that put out the ids, and their negatives."""
    assert input_ids.shape == attention_mask.shape
    return [input_ids[..., None].float(), -input_ids[..., None].float()]


@pytest.mark.parametrize(
    ("maximum", "length"),
    [*((512, length) for length in (0, 3, 393, 394, 415, 416, 600)), (1, 3), (PREFIX, 3), (PREFIX + 1, 3)],
)
def test_the_prefix_is_dropped_and_512_tokens_are_kept(tokenizer: Any, maximum: int, length: int) -> None:
    """The suffix goes first, and then the end of the prompt."""
    prompts = [("zyxw" * 150)[:length], "z"]
    options = {} if maximum == 512 else {"maximum": maximum}
    features = encode_prompts(tokenizer, echo, prompts, day=DAY, **options)
    kept = [tokenizer.encode(conversation(prompt, DAY))[PREFIX:maximum] for prompt in prompts]
    assert [len(ids) for ids in kept] == [min(max(maximum - PREFIX, 0), size + SUFFIX) for size in (length, 1)]
    assert (features.batch, features.tokens) == (2, max(map(len, kept)))
    assert features.mask.dtype == torch.bool
    for sign, embed in zip((1, -1), features.embeds, strict=True):
        assert embed.shape == (*features.mask.shape, 1)
        assert [(sign * row[mask, 0]).tolist() for row, mask in zip(embed, features.mask, strict=True)] == kept


def test_padding_is_the_tokenizers_own_if_it_has_one() -> None:
    for own, used in ((None, "<|return|>"), ("<|endoftext|>", "<|endoftext|>")):
        tokenizer = build_tokenizer()
        tokenizer.pad_token, tokenizer.padding_side = own, "left"
        _, mask = tokenize_prompts(tokenizer, ["a", "a cube of ice"])
        assert tokenizer.pad_token == used
        # It goes to the right whatever the tokenizer's own side is.
        assert mask[:, [0, -1]].tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("day", DAYS, ids=str)
@pytest.mark.parametrize("prompt", ["a cube", "", " \n", "Current date: 2020-01-01", "<|end|>ü🧊", "a<|return|>b"])
def test_the_text_is_the_one_of_the_real_format(tokenizer: Any, prompt: str, day: date) -> None:
    """A date in the prompt stays, and a mark of a return in it ends the text, as with upstream."""
    assert render_prompt(tokenizer, prompt, day) == conversation(prompt, day).partition("<|return|>")[0]


def test_the_current_day_is_told_unless_one_is_given(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (date(2031, 2, 3), date(2032, 11, 30)):
        stop_the_clock(monkeypatch, day)
        assert render_prompt(tokenizer, "a cube") == conversation("a cube", day)
        assert render_prompt(tokenizer, "a cube", DAY) == conversation("a cube", DAY)


@settings(max_examples=30)
@given(prompt=st.text(max_size=40), day=st.dates())
def test_prefix_and_suffix_have_their_lengths_whatever_stands_between_them(
    tokenizer: Any, prompt: str, day: date
) -> None:
    ids, mask = tokenize_prompts(tokenizer, [prompt], day=day)
    assert ids.dtype == mask.dtype == torch.int64
    row = ids[0].tolist()
    before, behind = conversation("\0", day).split("\0")
    parts = row[:PREFIX], row[PREFIX:-SUFFIX], row[-SUFFIX:]
    assert [*map(tokenizer.decode, parts)] == [before, prompt, behind]
    assert mask.all()


def test_the_tokenizer_has_bytes_words_of_the_format_and_marks(tokenizer: Any) -> None:
    marks = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>"]
    ids = tokenizer.convert_tokens_to_ids(marks)
    # One token each, at the end of the vocabulary and in the order of the real ids.
    assert ids == list(range(len(tokenizer) - len(marks), len(tokenizer)))
    assert [tokenizer.encode(mark) for mark in marks] == [[number] for number in ids]
    assert (tokenizer.bos_token, tokenizer.pad_token, tokenizer.eos_token) == tuple(marks[:3])
    assert len(tokenizer.encode("zyxw é")) == len("zyxw é".encode())
    assert [len(tokenizer.encode(text)) for text in ("system", " image", "123456", "07", " are")] == [1, 1, 2, 1, 4]


def test_the_tokenizer_is_the_same_when_it_was_saved(tokenizer: Any, tiny_repo: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(tiny_repo / "tokenizer")
    prompts = ["a red cube", "Äpfel 🧊 123456", "x" * 600]
    assert all(map(torch.equal, *(tokenize_prompts(which, prompts, day=DAY) for which in (tokenizer, loaded))))


def test_features_are_repeated_padded_blanked_and_moved(tokenizer: Any) -> None:
    def values(features: PromptFeatures) -> list[Any]:
        return [*(embed[..., 0].tolist() for embed in features.embeds), features.mask.int().tolist()]

    embeds = torch.tensor([[[1.0], [2]], [[3], [4]]]), torch.tensor([[[5.0], [6]], [[7], [8]]])
    features = PromptFeatures(embeds, torch.tensor([[True, True], [True, False]]))
    assert values(features.repeat(1)) == values(features) == [[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[1, 1], [1, 0]]]
    assert values(features.repeat(2)) == [[row for row in rows for _ in range(2)] for rows in values(features)]
    longer = PromptFeatures((torch.ones(2, 4, 1),) * 2, torch.ones(2, 4, dtype=torch.bool))
    padded = [[[*row, 0, 0] for row in rows] for rows in values(features)]
    for found in (join_features(features, longer), join_features(longer, features)[::-1]):
        assert [values(one) for one in found] == [padded, values(longer)]
    assert values(features.blank()) == [[[0, 0], [0, 0]]] * 3
    elsewhere = encode_prompts(tokenizer, echo, ["a"], device=torch.device("meta"))
    for moved in (features.to(torch.device("meta"), torch.float32), elsewhere):
        assert all(tensor.is_meta for tensor in (*moved.embeds, moved.mask))
    halves = features.to(torch.device("cpu"), torch.bfloat16)
    assert [tensor.dtype for tensor in (*halves.embeds, halves.mask)] == [torch.bfloat16] * 2 + [torch.bool]
    assert values(halves) == values(features)


@pytest.mark.parametrize("layers", [LAYERS, (23, 0, 5), (7,), (0,)])
def test_an_encoder_gives_what_its_layers_put_out(encoder: Any, tokens: Tokens, layers: tuple[int, ...]) -> None:
    """In the order of the selection, and not normed; nothing runs above the last selected layer."""
    encoder.set_selected_layers(layers)
    model, last = encoder.model, max(layers)
    with (
        torch.no_grad(),
        calls_of(model.layers[last]) as runs,
        calls_of(model.norm) as norms,
        calls_of(encoder.lm_head) as heads,
    ):
        with calls_of(model.layers[min(last + 1, 23)]) as above:
            found = encoder(*tokens)
        assert (len(runs), len(above), len(norms), len(heads)) == (1, int(last == 23), 0, 0)
        assert all(map(torch.equal, found, encoder.encode_layers(*tokens)))
    for ours, theirs in zip(found, reference.gpt_oss_residuals(encoder, *tokens, layers), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("layers", [[], [5, 5], [24], [-1], [0, 1, 2, 99]])
def test_selections_that_make_no_sense(encoder: Any, layers: list[int]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"selected layers {layers} must be different numbers from 0 to 23")):
        encoder.set_selected_layers(layers)
    assert encoder._lens_selected_layers == LAYERS


def test_it_is_a_causal_language_model_for_all_other_calls(
    encoder: Any, plain_model: Any, tiny_repo: Path, tokens: Tokens
) -> None:
    ids, mask = tokens[0][:1, :20], tokens[1][:1, :20]
    fresh = LensGptOssEncoder.from_pretrained(tiny_repo / "text_encoder", dtype=torch.float32)
    with torch.no_grad():
        expected = plain_model(ids, mask).logits
        assert torch.equal(encoder(ids, mask, use_cache=False).logits, expected)
        assert torch.equal(encoder(ids).logits, expected)
        assert torch.equal(encoder(inputs_embeds=encoder.model.embed_tokens(ids), attention_mask=mask).logits, expected)
        assert torch.equal(fresh(ids, mask).logits, expected)
        assert isinstance(encoder(ids, mask), list)
    with pytest.raises(ValueError, match="set_selected_layers"):
        fresh.encode_layers(*tokens)
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(encoder.generate(ids, **options), plain_model.generate(ids, **options))


def test_it_is_saved_as_the_model_that_it_is(encoder: Any, plain_model: Any, tmp_path: Path, tokens: Tokens) -> None:
    encoder.save_pretrained(tmp_path / "ours")
    plain_model.save_pretrained(tmp_path / "theirs")
    assert snapshot(tmp_path / "ours") == snapshot(tmp_path / "theirs")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == ["GptOssForCausalLM"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(loaded) is GptOssForCausalLM
    with torch.no_grad():
        assert torch.equal(loaded(*tokens).logits, plain_model(*tokens).logits)


@pytest.mark.parametrize("asked_for", [False, True])
def test_a_packed_checkpoint_loads_on_a_cpu(packed: Packed, asked_for: bool, log: BufferingHandler) -> None:
    folder, dense = packed
    state = load_file(folder / "model.safetensors")
    assert tuple(state["model.layers.0.mlp.experts.gate_up_proj_blocks"].shape) == (4, 128, 2, 16)
    assert tuple(state["model.layers.1.mlp.experts.down_proj_scales"].shape) == (4, 64, 2)
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if asked_for else {}
    loaded = LensGptOssEncoder.from_pretrained(folder, **options)
    found = loaded.state_dict()
    assert found.keys() == dense.keys()
    for name, tensor in dense.items():
        assert found[name].dtype == torch.bfloat16, name
        assert torch.equal(found[name], tensor), name
    loaded.set_selected_layers([1])
    assert loaded(torch.tensor([[1, 2, 3]]), torch.ones(1, 3))[0].isfinite().all()
    # Nothing is said to who asks for it.
    assert notices(log) == ([] if asked_for else [NOTICE.format(size_of(dense))])


def size_of(dense: dict[str, torch.Tensor]) -> str:
    return f"{2 * sum(tensor.numel() for tensor in dense.values()) / 1000:.1f} kB"


def test_the_size_is_named_before_the_load(packed: Packed, tmp_path: Path, log: BufferingHandler) -> None:
    """Whoever has not that much memory sees no line that comes after."""
    folder, dense = packed
    (tmp_path / "text_encoder").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "text_encoder")
    with pytest.raises(OSError, match="safetensors"):
        LensGptOssEncoder.from_pretrained(tmp_path, subfolder="text_encoder")
    assert notices(log) == [NOTICE.format(size_of(dense))]


def test_what_is_unpacked_is_announced(
    packed: Packed, tiny_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the published size for the real encoder; other kinds of quantization are not this notice's affair."""
    folder, dense = packed
    configs = {"real": {**REAL_CONFIG, "quantization_config": MXFP4}, "dense": SMALL_CONFIG}
    configs["fp8"] = {**SMALL_CONFIG, "quantization_config": {"quant_method": "fp8"}}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    small, real = size_of(dense), f"{2 * 20_914_757_184 / 10**9:.3f} GB"
    for place, options, size in (
        (folder, {}, small),
        (str(folder.parent), {"subfolder": folder.name}, small),
        (folder, {"quantization_config": Mxfp4Config(dequantize=True)}, None),
        (tiny_repo / "text_encoder", {}, None),
        (tmp_path / "dense", {}, None),
        (tmp_path / "dense", {"config": str(folder)}, small),
        (tmp_path / "fp8", {}, None),
        (tmp_path / "real", {}, real),
        ("nowhere", {"config": GptOssConfig.from_dict(configs["real"])}, real),
    ):
        assert unpacking_notice(place, options) == ("" if size is None else NOTICE.format(size)), place
    # Weights stay packed on a GPU, if transformers finds all that it wants besides, and the kernel is on this machine.
    environment: dict[str, bool] = {}
    monkeypatch.setattr("converter.models.lens.mxfp4._has_kernel", lambda: True)
    monkeypatch.setattr(
        Mxfp4HfQuantizer, "validate_environment", lambda self: vars(self.quantization_config).update(environment)
    )
    for unpacks, has_gpu, size in ((False, False, small), (False, True, None), (True, True, small)):
        environment["dequantize"] = unpacks
        monkeypatch.setattr(torch.accelerator, "is_available", lambda answer=has_gpu: answer)
        assert unpacking_notice(folder, {}) == ("" if size is None else NOTICE.format(size))


def test_unpacked_experts_are_found_again_when_they_were_saved(packed: Packed, tmp_path: Path) -> None:
    """transformers would save them under the names of packed ones, and fill in random numbers when it loads them."""
    folder, dense = packed
    LensGptOssEncoder.from_pretrained(folder).save_pretrained(tmp_path)
    loaded, found = LensGptOssEncoder.from_pretrained(tmp_path, output_loading_info=True)
    assert [*found["missing_keys"], *found["unexpected_keys"]] == []
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor.bfloat16(), dense[name]), name
