"""Layouts against the files that safetensors and the libraries write."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from converter.checkpoint.layout import TensorSpec, lay_out
from converter.checkpoint.writer import SlotWriter, replace_file
from converter.conversion.execution.hashing import FollowingHasher
from converter.errors import DiskError, OutputError
from converter.models.classes import SAFETENSORS_NAMES
from tests.conftest import names_in

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int8, torch.int16, torch.float8_e4m3fn])
STATES = st.dictionaries(
    st.text(alphabet="abcxyz.019_", min_size=1, max_size=12),
    st.tuples(DTYPES, st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    min_size=1,
    max_size=12,
)


def random_state(shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    """Tensors of these dtypes and shapes with random bytes."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (dtype, shape) in shapes.items():
        size = torch.empty(shape, dtype=dtype).numel() * dtype.itemsize
        state[name] = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)
    return state


def specs_of(state: dict[str, torch.Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()]


def write(folder: Path, state: dict[str, torch.Tensor], **options: Any) -> None:
    """Write a state dict with our own writer, in an order that is not the file's."""
    layout = lay_out(specs_of(state), stem="model", **options)
    with SlotWriter(folder, layout) as writer:
        for name in reversed(state):
            slot = layout.slots[name]
            writer.write(slot.file, slot.offset, state[name].reshape(-1).view(torch.uint8).numpy().tobytes())
        writer.sync()
    if layout.index:
        (folder / layout.index_name).write_bytes(layout.index)


@settings(max_examples=60)
@given(shapes=STATES)
def test_files_are_those_of_safetensors(
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("layout")
    state = random_state(shapes)
    write(folder, state)
    assert (folder / "model.safetensors").read_bytes() == save(state, metadata={"format": "pt"})


@settings(max_examples=40)
@given(shapes=STATES, shard_bytes=st.integers(1, 200))
def test_shards_are_those_of_the_hub_library(
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]], shard_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = tmp_path_factory.mktemp("layout")
    # Empty tensors share a storage, which the Hub library takes for a tie.
    state = {name: tensor for name, tensor in random_state(shapes).items() if tensor.numel()}
    if not state:
        return
    write(folder, state, shard_bytes=shard_bytes)
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    for file, names in split.filename_to_tensors.items():
        expected = folder / "expected"
        save_file({name: state[name] for name in names}, expected, metadata={"format": "pt"})
        assert (folder / file).read_bytes() == expected.read_bytes()
    assert {file.name for file in folder.glob("*.safetensors")} == split.filename_to_tensors.keys()
    if split.is_sharded:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index == {"metadata": split.metadata, "weight_map": split.tensor_to_filename}


@pytest.mark.parametrize("code", [None, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV])
def test_an_interrupted_file_is_filled_up(code: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no space can be reserved here")

    if code is not None:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    state = {"a": torch.ones(3), "b": torch.zeros(5)}
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    layout = lay_out(specs_of(state), stem="other")
    SlotWriter(tmp_path, layout).close()
    assert (tmp_path / "other.safetensors").stat().st_size == layout.files[0].total_bytes
    write(tmp_path, state)
    assert (tmp_path / "model.safetensors").read_bytes() == save(state, metadata={"format": "pt"})


def test_a_folder_or_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        SlotWriter(tmp_path / "file" / "folder", lay_out([TensorSpec("x", "F32", (3,))], stem="model"))
    before = names_in(Path("/proc/self/fd"))
    with pytest.raises((DiskError, OutputError)):
        SlotWriter(tmp_path, lay_out([TensorSpec("x", "U8", (1 << 60,))], stem="model"))
    assert {*names_in(Path("/proc/self/fd"))} <= {*before}


def test_a_file_is_replaced_whole_and_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    others = [f".a[1].json.{os.getppid()}", ".a1.json.1", ".a[1].json.x"]
    for name in (f".a[1].json.{child.pid}", *others):
        (tmp_path / name).write_text("half")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        replace_file(tmp_path / "folder", b"")
    replace_file(tmp_path / "a[1].json", b"first")
    replace_file(tmp_path / "a[1].json", b"second")
    assert (tmp_path / "a[1].json").read_bytes() == b"second"
    assert names_in(tmp_path) == sorted(["a[1].json", "folder", *others])


def test_a_shape_that_does_not_fill_bytes() -> None:
    with pytest.raises(ValueError, match="whole bytes"):
        lay_out([TensorSpec("x", "F4", (3,))], stem="model")


def test_files_are_hashed_and_written_back_behind_the_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the slots are filled, and however often the hasher hands on what it has."""
    monkeypatch.setattr("converter.conversion.execution.writeback.STEP_BYTES", 4096)
    monkeypatch.setattr("converter.conversion.execution.hashing.READ_BYTES", 1000)
    specs = [TensorSpec(f"t{number}", "U8", (3000 + 17 * number,)) for number in range(20)]
    layout = lay_out(specs, stem="model", shard_bytes=30_000)
    assert len(layout.files) > 1
    with SlotWriter(tmp_path, layout) as writer, FollowingHasher(tmp_path, layout) as hasher:
        for name, slot in reversed(layout.slots.items()):
            writer.write(slot.file, slot.offset, name.encode() * (slot.bytes // len(name)))
            hasher.finish_slot(name)
        writer.sync()
        digests = hasher.digests()
    for file in layout.files:
        content = (tmp_path / file.name).read_bytes()
        assert len(content) == file.total_bytes
        assert digests[file.name] == hashlib.sha256(content).hexdigest()
    (tensor,) = (tensor for name, tensor in load_file(tmp_path / layout.slots["t13"].file).items() if name == "t13")
    assert bytes(tensor[:6].numpy()) == b"t13t13"


class InterruptedPool(ThreadPoolExecutor):
    """Ctrl-C comes right after a thread was started."""

    def submit(self, *arguments: Any, **options: Any) -> Any:
        future = super().submit(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return future


def test_an_interrupt_while_the_hasher_starts_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.conversion.execution.hashing.ThreadPoolExecutor", InterruptedPool)
    layout = lay_out([TensorSpec("t", "U8", (10,))], stem="model")
    with pytest.raises(KeyboardInterrupt), FollowingHasher(tmp_path, layout):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hasher")]
