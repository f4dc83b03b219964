"""From a prompt to its features: the conversation around it, its tokens, and the output of the text encoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GptOssConfig, GptOssForCausalLM, Mxfp4Config
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer

from converter.lens import LensGptOssEncoder
from converter.models.lens.features import PromptFeatures, encode_prompts, join_features
from converter.models.lens.mxfp4 import unpacking_notice
from converter.models.lens.prompts import render_prompt, tokenize_prompts
from converter.synthesis.tokenizer import build_tokenizer
from tests.conftest import snapshot
from tests.lens import reference
from tests.lens.prompts import (
    DAY,
    LAYERS,
    MAXIMUM,
    MXFP4,
    PREFIX,
    SUFFIX,
    SYSTEM,
    THINKING,
    conversation,
    notices,
    pack_experts,
    stop_the_clock,
)

DAYS = [DAY, date(1999, 12, 31), date(2000, 1, 1), date(2024, 2, 29), date(999, 9, 9), date(9999, 10, 10)]
#: The text encoder of microsoft/Lens, which is openai/gpt-oss-20b.
REAL_CONFIG: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
    "quantization_config": MXFP4,
}
SMALL_CONFIG: dict[str, Any] = {
    **{key: value for key, value in REAL_CONFIG.items() if key != "quantization_config"},
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 64,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "vocab_size": 256,
}

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


class LetterTokenizer:
    """A token for each letter, 97 letters before a prompt and 22 behind it. It notes what it is asked for."""

    eos_token = "<|return|>"  # noqa: S105

    def __init__(self, pad_token: str | None = None) -> None:
        self.pad_token = pad_token
        self.conversations: list[Any] = []
        self.options: dict[str, Any] = {}

    def apply_chat_template(self, conversation: Sequence[dict[str, str]], **options: Any) -> str:
        self.conversations.append((conversation, options))
        return "(" * PREFIX + conversation[1]["content"] + ")" * SUFFIX + "<|return|>and more<|return|>"

    def __call__(self, texts: Sequence[str], **options: Any) -> SimpleNamespace:
        assert self.pad_token is not None, "nothing to pad with"
        self.options = options
        rows = [torch.tensor([ord(letter) for letter in text[: options["max_length"]]]) for text in texts]
        masks = [torch.ones_like(row) for row in rows]
        return SimpleNamespace(
            input_ids=pad_sequence(rows, batch_first=True), attention_mask=pad_sequence(masks, batch_first=True)
        )


def letter_encoder(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
    """Two layers that put out the letters, and their negatives."""
    assert input_ids.shape == attention_mask.shape
    return [input_ids[..., None].float(), -input_ids[..., None].float()]


def letters(features: PromptFeatures, row: int = 0) -> str:
    """What `letter_encoder` was shown of a prompt, as far as it counts."""
    assert torch.equal(features.embeds[1], -features.embeds[0])
    return "".join(chr(int(number)) for number in features.embeds[0][row, features.mask[row], 0])


def test_the_conversation_is_upstreams() -> None:
    tokenizer = LetterTokenizer()
    render_prompt(tokenizer, "a cube")
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "a cube"},
        {"role": "assistant", "thinking": THINKING, "content": ""},
    ]
    assert tokenizer.conversations == [(messages, {"tokenize": False, "add_generation_prompt": False})]


def test_prefix_is_dropped_and_the_rest_is_kept() -> None:
    tokenizer = LetterTokenizer()
    features = encode_prompts(tokenizer, letter_encoder, ["ab", "abcdef", ""])
    assert [letters(features, row) for row in range(3)] == [prompt + ")" * SUFFIX for prompt in ("ab", "abcdef", "")]
    assert features.mask.dtype == torch.bool
    assert (features.batch, features.tokens) == (3, 6 + SUFFIX)
    # On the right, or the prompt would not begin behind 97 tokens.
    padding = {"padding": "longest", "padding_side": "right", "return_tensors": "pt"}
    assert tokenizer.options == {**padding, "truncation": True, "max_length": MAXIMUM}


@pytest.mark.parametrize(("length", "kept"), [(393, SUFFIX), (394, SUFFIX - 1), (415, 0), (416, -1), (600, -185)])
def test_512_tokens_are_kept(length: int, kept: int) -> None:
    """The suffix goes first, and then the end of the prompt."""
    prompt = "".join(chr(ord("a") + number % 26) for number in range(length))
    features = encode_prompts(LetterTokenizer(), letter_encoder, [prompt])
    assert letters(features) == prompt[: length + min(kept, 0)] + ")" * max(kept, 0)
    assert features.tokens == min(length + SUFFIX, MAXIMUM - PREFIX)


@pytest.mark.parametrize("maximum", [1, 50, PREFIX])
def test_no_tokens_are_left_of_a_prefix_alone(maximum: int) -> None:
    features = encode_prompts(LetterTokenizer(), letter_encoder, ["ab", "c"], maximum=maximum)
    assert [tuple(embed.shape) for embed in features.embeds] == [(2, 0, 1)] * 2
    assert tuple(features.mask.shape) == (2, 0)
    assert letters(encode_prompts(LetterTokenizer(), letter_encoder, ["ab"], maximum=PREFIX + 1)) == "a"


def test_the_text_ends_at_the_first_mark_of_a_return() -> None:
    tokenizer = LetterTokenizer()
    assert render_prompt(tokenizer, "ab") == "(" * PREFIX + "ab" + ")" * SUFFIX
    # A prompt that holds the mark loses what follows it, as with upstream.
    assert letters(encode_prompts(tokenizer, letter_encoder, ["a<|return|>b<|return|>c"])) == "a"


def test_padding_is_the_tokenizers_own_if_it_has_one() -> None:
    for own, used in ((None, "<|return|>"), ("<|endoftext|>", "<|endoftext|>")):
        tokenizer = LetterTokenizer(own)
        tokenize_prompts(tokenizer, ["a"])
        assert tokenizer.pad_token == used


@pytest.mark.parametrize("day", DAYS, ids=str)
@pytest.mark.parametrize("prompt", ["a red cube on a table", "", " \n", "Current date: 2020-01-01", "<|end|>ü🧊"])
def test_the_text_is_the_one_of_the_real_format(tokenizer: Any, prompt: str, day: date) -> None:
    """Also if the prompt tells a date of its own, which stays."""
    assert render_prompt(tokenizer, prompt, day) == conversation(prompt, day)


def test_the_current_day_is_told_unless_one_is_given(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (date(2031, 2, 3), date(2032, 11, 30)):
        stop_the_clock(monkeypatch, day)
        assert render_prompt(tokenizer, "a cube") == conversation("a cube", day)
        assert render_prompt(tokenizer, "a cube", DAY) == conversation("a cube", DAY)


@settings(max_examples=60)
@given(prompt=st.text(max_size=40), day=st.dates())
def test_prefix_and_suffix_have_their_lengths_whatever_stands_between_them(
    tokenizer: Any, prompt: str, day: date
) -> None:
    ids, mask = tokenize_prompts(tokenizer, [prompt], day=day)
    row = ids[0].tolist()
    before, behind = conversation("\0", day).split("\0")
    assert tokenizer.decode(row[:PREFIX]) == before
    assert tokenizer.decode(row[PREFIX:-SUFFIX]) == prompt
    assert tokenizer.decode(row[-SUFFIX:]) == behind
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
    for ours, theirs in zip(
        tokenize_prompts(tokenizer, prompts, day=DAY), tokenize_prompts(loaded, prompts, day=DAY), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_batch_of_real_tokens_is_padded_and_cut_on_the_right(tokenizer: Any) -> None:
    prompts = ["abc", "z" * 600, "a red cube"]
    ids, mask = tokenize_prompts(tokenizer, prompts, day=DAY)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.shape == mask.shape == (3, MAXIMUM)
    for row, prompt in enumerate(prompts):
        expected = tokenizer.encode(conversation(prompt, DAY))[:MAXIMUM]
        padding = MAXIMUM - len(expected)
        assert ids[row].tolist() == expected + [tokenizer.pad_token_id] * padding
        assert mask[row].tolist() == [1] * len(expected) + [0] * padding


def test_features_are_the_residuals_behind_the_prefix(encoder: Any, tokenizer: Any) -> None:
    prompts = ["a red cube on a wooden table", "a", "y" * 600]
    features = encode_prompts(tokenizer, encoder, prompts, day=DAY)
    assert features.tokens == MAXIMUM - PREFIX
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([tokenizer.encode(conversation(prompt, DAY))[:MAXIMUM]])
        residuals = reference.gpt_oss_residuals(encoder, ids, torch.ones_like(ids), LAYERS)
        length = ids.shape[1] - PREFIX
        assert features.mask[row].tolist() == [True] * length + [False] * (features.tokens - length)
        for embed, residual in zip(features.embeds, residuals, strict=True):
            torch.testing.assert_close(embed[row, :length], residual[0, PREFIX:], rtol=1e-4, atol=1e-4)


def test_features_are_repeated_padded_and_blanked() -> None:
    features = PromptFeatures(
        (torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[[5.0], [6.0]], [[7.0], [8.0]]])),
        torch.tensor([[True, True], [True, False]]),
    )
    twice = features.repeat(2)
    assert twice.embeds[1][..., 0].tolist() == [[5, 6], [5, 6], [7, 8], [7, 8]]
    assert twice.mask.tolist() == [[True, True], [True, True], [True, False], [True, False]]
    assert features.repeat(1).embeds[0].tolist() == features.embeds[0].tolist()
    longer = PromptFeatures((torch.ones(2, 4, 1),) * 2, torch.ones(2, 4, dtype=torch.bool))
    for joined in (join_features(features, longer)[0], join_features(longer, features)[1]):
        assert joined.embeds[0][..., 0].tolist() == [[1, 2, 0, 0], [3, 4, 0, 0]]
        assert joined.mask.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert join_features(features, longer)[1].mask.all()
    blank = features.blank()
    assert [embed.shape for embed in blank.embeds] == [embed.shape for embed in features.embeds]
    assert not any(embed.any() for embed in blank.embeds)
    assert blank.mask.tolist() == [[False, False], [False, False]]
    halves = features.to(torch.device("cpu"), torch.bfloat16)
    assert [embed.dtype for embed in halves.embeds] == [torch.bfloat16] * 2
    assert halves.mask.dtype == torch.bool


@pytest.mark.parametrize("layers", [LAYERS, (23, 0, 5), (7,)])
def test_an_encoder_gives_what_its_layers_put_out(encoder: Any, tokens: Tokens, layers: tuple[int, ...]) -> None:
    """In the order of the selection; the last layer's output is not normed."""
    encoder.set_selected_layers(layers)
    with torch.no_grad():
        found = encoder(*tokens)
        assert all(map(torch.equal, found, encoder.encode_layers(*tokens)))
    for ours, theirs in zip(found, reference.gpt_oss_residuals(encoder, *tokens, layers), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_hidden_states_of_transformers_are_the_same_but_for_the_last(
    encoder: Any, plain_model: Any, tokens: Tokens
) -> None:
    with torch.no_grad():
        found = encoder(*tokens)
        states = plain_model.model(*tokens, output_hidden_states=True).hidden_states
        normed = plain_model.model.norm(found[3])
    for ours, index in zip(found, (6, 12, 18), strict=False):
        assert torch.equal(ours, states[index])
    assert torch.equal(normed, states[24])
    assert not torch.allclose(found[3], states[24], atol=0.1)


@pytest.mark.parametrize("last", [0, 11, 23])
def test_nothing_runs_above_the_last_selected_layer(encoder: Any, tokens: Tokens, last: int) -> None:
    encoder.set_selected_layers([last])
    ran: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: ran.append(name)

    watched = {str(number): layer for number, layer in enumerate(encoder.model.layers)}
    watched |= {"norm": encoder.model.norm, "head": encoder.lm_head}
    handles = [module.register_forward_pre_hook(note(name)) for name, module in watched.items()]
    try:
        with torch.no_grad():
            encoder(*tokens)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [str(number) for number in range(last + 1)]


def test_padding_changes_nothing(encoder: Any, tokens: Tokens) -> None:
    ids, mask = tokens
    with torch.no_grad():
        batch = encoder(ids, mask)
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length])
            for ours, theirs in zip(batch, alone, strict=True):
                torch.testing.assert_close(ours[row, :length], theirs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [[], [5, 5], [24], [-1], [0, 1, 2, 99]])
def test_selections_that_make_no_sense(encoder: Any, layers: list[int]) -> None:
    with pytest.raises(ValueError, match="0 to 23"):
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


def test_a_packed_checkpoint_loads_on_a_cpu(packed: Packed, caplog: pytest.LogCaptureFixture) -> None:
    folder, dense = packed
    state = load_file(folder / "model.safetensors")
    assert tuple(state["model.layers.0.mlp.experts.gate_up_proj_blocks"].shape) == (4, 128, 2, 16)
    assert tuple(state["model.layers.1.mlp.experts.down_proj_scales"].shape) == (4, 64, 2)
    loaded = LensGptOssEncoder.from_pretrained(folder)
    found = loaded.state_dict()
    assert found.keys() == dense.keys()
    for name, tensor in dense.items():
        assert found[name].dtype == torch.bfloat16, name
        assert torch.equal(found[name], tensor), name
    loaded.set_selected_layers([1])
    assert loaded(torch.tensor([[1, 2, 3]]), torch.ones(1, 3))[0].isfinite().all()
    (notice,) = notices(caplog)
    size = 2 * sum(tensor.numel() for tensor in dense.values())
    assert f"{size / 1000:.1f} kB" in notice


def test_the_size_is_named_before_the_load(packed: Packed, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has not that much memory sees no line that comes after."""
    config = (packed[0] / "config.json").read_bytes()
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_bytes(config)
    with pytest.raises(OSError, match="safetensors"):
        LensGptOssEncoder.from_pretrained(tmp_path, subfolder="text_encoder")
    assert len(notices(caplog)) == 1
    assert "kB of memory" in notices(caplog)[0]


def test_nothing_is_said_to_who_asks_for_unpacking(packed: Packed, caplog: pytest.LogCaptureFixture) -> None:
    folder, dense = packed
    loaded = LensGptOssEncoder.from_pretrained(folder, quantization_config=Mxfp4Config(dequantize=True))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in dense.items())
    assert notices(caplog) == []


def test_nothing_is_said_of_dense_checkpoints(tiny_repo: Path, caplog: pytest.LogCaptureFixture) -> None:
    LensGptOssEncoder.from_pretrained(tiny_repo / "text_encoder")
    assert notices(caplog) == []
    # Other kinds of quantization are not this notice's affair.
    config = GptOssConfig.from_dict({**SMALL_CONFIG, "quantization_config": {"quant_method": "fp8"}})
    assert unpacking_notice("nowhere", {"config": config}) == ""


def test_nothing_is_said_where_weights_stay_packed(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes a GPU and all that transformers wants besides; here it finds all it wants."""
    monkeypatch.setattr(Mxfp4HfQuantizer, "validate_environment", lambda _: None)
    assert unpacking_notice(packed[0], {}) != ""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert unpacking_notice(packed[0], {}) == ""


def test_the_real_encoder_takes_its_published_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(REAL_CONFIG))
    from_file = unpacking_notice(tmp_path, {})
    assert "41.83" in from_file
    assert f"{2 * 20_914_757_184 / 10**9:.2f}" == "41.83"
    assert unpacking_notice("nowhere", {"config": GptOssConfig.from_dict(REAL_CONFIG)}) == from_file


def test_unpacked_experts_are_found_again_when_they_were_saved(packed: Packed, tmp_path: Path) -> None:
    """transformers would save them under the names of packed ones, and fill in random numbers when it loads them."""
    folder, dense = packed
    LensGptOssEncoder.from_pretrained(folder).save_pretrained(tmp_path)
    loaded, found = LensGptOssEncoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor.bfloat16(), dense[name]), name


def test_a_config_given_by_its_path_counts(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL_CONFIG))
    assert unpacking_notice(tmp_path, {}) == ""
    assert "it is unpacked" in unpacking_notice(tmp_path, {"config": str(packed[0])})
