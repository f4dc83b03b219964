"""What a process on a node does, in this one: the steps of a weight file, in order, and the errors between them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, convert, errors
from converter.checkpoint.staging import Staging
from converter.checkpoint.writer import SlotWriter
from converter.cluster.cluster import Cluster
from converter.cluster.hosted import Hosted
from converter.cluster.losses import Lost
from converter.cluster.resources import Need, Node
from converter.conversion.execution import relaying
from converter.conversion.execution.execute import execute
from converter.conversion.execution.relaying import (
    Count,
    FinishSlots,
    Note,
    NoteBegun,
    Received,
    Step,
    Tell,
    Write,
)
from converter.conversion.execution.shard_converter import HubSource, ShardConverter, WeightFile, find_files, find_repo
from converter.conversion.execution.streaming import PROVEN
from converter.conversion.execution.work import Work, make_work
from converter.conversion.kernels.host import HOST
from converter.conversion.planner_process import plan_here
from converter.conversion.request import Target, open_request
from converter.hub.addresses import parse_address
from converter.hub.shadow import shadowed
from tests.conftest import Lensconv, Serve, run_python, time_limit
from tests.loopback import PLACE, TOKEN
from tests.reporters import Notes
from tests.streams import asked, refusal, status

BUDGET = 1 << 28


@pytest.fixture(scope="module")
def work(sharded: Path) -> tuple[Target, Work]:
    return planned(sharded)


def planned(source: Path, options: ConvertOptions | None = None) -> tuple[Target, Work]:
    """What the default recipe makes of a source."""
    target = open_request(source, None, options or ConvertOptions()).main
    return target, make_work(target, plan_here(target).plan)


def converter(target: Target, work: Work, hub: HubSource | None = None) -> ShardConverter:
    """As it arrives on a node."""
    return ShardConverter(*pickle.loads(pickle.dumps((target, work, BUDGET, hub))))  # noqa: S301 - its own


def steps_of(shards: ShardConverter, file: str, *noted: dict[str, dict[str, object]]) -> Iterator[Step]:
    """The steps of a file, as they arrive from a node."""
    finished, begun = (*noted, {}, {})[:2]
    for steps in shards.convert(file, finished, begun):
        yield from pickle.loads(pickle.dumps(steps))  # noqa: S301 - its own


def names(target: Target) -> list[str]:
    return [header.file.name for header in target.checkpoint.headers]


def test_the_steps_of_all_files_make_the_output(
    work: tuple[Target, Work], sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "MESSAGE_BYTES", 50_000)
    monkeypatch.setattr(relaying, "STEP_BYTES", 10_000)
    target, found = work
    shards = converter(target, found)
    noted: list[str] = []
    written: dict[str, int] = dict.fromkeys(found.layout.slots, 0)
    count = 0
    with SlotWriter(tmp_path / "out", found.layout) as writer:
        for file in names(target):
            for step in steps_of(shards, file):
                match step:
                    case Write(name, offset, data):
                        assert 0 < len(data) <= 10_000
                        writer.write(name, offset, data)
                        slots = found.layout.slots.items()
                        (slot,) = [
                            one for one, at in slots if at.file == name and at.offset <= offset < at.offset + at.bytes
                        ]
                        written[slot] += len(data)
                    case FinishSlots(finished):
                        assert all(written[one] == found.layout.slots[one].bytes for one in finished)
                    case Note(tensor, facts):
                        assert target.checkpoint.tensors[tensor].file.name == file
                        assert facts["outputs"]
                        noted.append(tensor)
                    case Count(size):
                        count += size
                    case _:
                        raise AssertionError(step)
    assert sorted(noted) == sorted(job.tensor.entry.name for job in found.jobs)
    assert count == sum(job.tensor.entry.bytes for job in found.jobs)
    convert(sharded, tmp_path / "local")
    for layout in found.layout.files:
        assert (tmp_path / "out" / layout.name).read_bytes() == (tmp_path / "local" / layout.name).read_bytes()


def test_what_is_finished_is_not_done_again(work: tuple[Target, Work]) -> None:
    target, found = work
    shards = converter(target, found)
    first, *_ = names(target)
    notes = {step.tensor: step.facts for step in steps_of(shards, first) if isinstance(step, Note)}
    last = list(notes)[-1]
    left = {name: facts for name, facts in notes.items() if name != last}
    assert [step.tensor for step in steps_of(shards, first, left) if isinstance(step, Note)] == [last]


def test_nobody_takes_the_steps(work: tuple[Target, Work], monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion waits with a bounded number of bytes, and ends with the one who took them."""
    monkeypatch.setattr(relaying, "MESSAGE_BYTES", 1000)
    target, found = work
    messages = converter(target, found).convert(names(target)[0], {}, {})
    taken = next(messages)
    assert sum(len(step.data) for step in taken if isinstance(step, Write)) <= 1000 + relaying.STEP_BYTES
    messages.close()  # type: ignore[attr-defined]


def test_a_weight_that_is_not_finite_ends_the_steps(sharded: Path, tmp_path: Path) -> None:
    source = shutil.copytree(sharded, tmp_path / "source")
    target, found = planned(source)
    file = target.checkpoint.headers[0].file
    tensors = load_file(file)
    name = max(tensors, key=lambda one: target.checkpoint.tensors[one].offset)
    tensors[name].view(-1)[0] = torch.inf
    save_file(tensors, file, {"format": "pt"})
    # Only the bytes differ; a change is refused before.
    target = open_request(source, None, ConvertOptions()).main
    text = refusal(lambda: list(steps_of(converter(target, found), file.name)), errors.NonFiniteWeight)
    assert name in text
    assert str(file) in text


@pytest.mark.usefixtures("plain_client")
def test_from_the_hub(work: tuple[Target, Work], serve: Serve, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process on a node has no folder in place of the repo, and asks for nothing that is known."""
    monkeypatch.setattr("converter.hub.readers.NOTED_BYTES", 1)
    monkeypatch.setattr("converter.conversion.execution.jobs.PIECE_BYTES", 1 << 14)
    hub = serve(sharded)
    with shadowed(parse_address(PLACE), lambda _: [None]) as shadow:
        target = open_request(shadow.folder, None, ConvertOptions(), shadow=shadow).main
        target = replace(target, checkpoint=replace(target.checkpoint, open_other=None))
        found = make_work(target, plan_here(target).plan)
        source = HubSource(shadow.repo.known(), shadow.folder)
    assert TOKEN not in repr(source)
    find_repo(source, target.checkpoint.headers[0])
    local = [step for file in names(target) for step in steps_of(converter(*work), file)]
    hub.seen.clear()
    shards = converter(target, found, source)
    assert hub.seen == []
    steps = [step for file in names(target) for step in steps_of(shards, file)]
    assert [asked(hub, name) for name in names(target)] == [1] * len(names(target))
    assert {token for host, _, token in hub.seen if host.startswith("127.")} == {f"Bearer {TOKEN}"}
    assert content_of(steps, found) == content_of(local, work[1])
    assert [step.tensor for step in steps if isinstance(step, Note) and PROVEN in step.tensor] == [
        PROVEN + name for name in names(target)
    ]
    sizes = sum(file.stat().st_size for file in sharded.glob("*.safetensors"))
    assert sum(step.bytes for step in steps if isinstance(step, Received)) == sizes
    # An attempt that is lost inside a tensor, and the next one.
    first = names(target)[0]
    begun = {step.tensor: step.facts for step in steps_of(shards, first) if isinstance(step, NoteBegun)}
    name = next(iter(begun))
    again = list(steps_of(shards, first, {}, {name: begun[name]}))
    assert Count(int(begun[name]["done"]), is_skipped=True) in again
    hub.faults[f"/lfs/{first}"] = status(401)
    refusal(lambda: list(steps_of(shards, first)), errors.HubError)
    assert not any(isinstance(step, Tell) for step in steps)


def content_of(steps: list[Step], work: Work) -> dict[str, bytearray]:
    """The files without their headers, as far as they are written."""
    content = {file.name: bytearray(file.total_bytes) for file in work.layout.files}
    for step in steps:
        if isinstance(step, Write):
            content[step.file][step.offset : step.offset + len(step.data)] = step.data
    return content


class Nearby(Cluster):
    """Calls in this process what others call on nodes, and loses each process after so many messages."""

    def __init__(self, lasts: int) -> None:
        super().__init__(ray)
        self.lasts = lasts
        self.losses = 0

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (Node("a", "a", cpus=2, gpus=0), Node("b", "b", cpus=1, gpus=0))

    def host(
        self, need: Need, kind: Callable[..., Any], *arguments: Any, is_wanted: Callable[[], bool] = lambda: True
    ) -> Hosted:
        assert need == Need(cpus=1)
        assert callable(is_wanted)
        held = kind(*pickle.loads(pickle.dumps(arguments)))  # noqa: S301 - its own
        return NearbyHost(self.answers, held, None, lambda _: None, nearby=self)


@dataclass(eq=False, kw_only=True)
class NearbyHost(Hosted):
    nearby: Nearby

    def stream(self, method: str, *arguments: Any, most: int = -1) -> Iterator[Any]:
        assert most > 0
        for number, steps in enumerate(getattr(self.actor, method)(*arguments)):
            if number == self.nearby.lasts:
                self.nearby.losses += 1
                raise Lost("a process ended")
            yield pickle.loads(pickle.dumps(steps))  # noqa: S301 - its own

    def close(self) -> None:
        """There is no process."""


@pytest.mark.parametrize(("lasts", "piece_bytes"), [(6, 1 << 20), (25, 1 << 16), (1000, 1 << 16)])
def test_lost_processes_cost_only_what_they_had_not_finished(
    lasts: int,
    piece_bytes: int,
    work: tuple[Target, Work],
    sharded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between two tensors, and inside of them."""
    monkeypatch.setattr(relaying, "MESSAGE_BYTES", 1)
    monkeypatch.setattr("converter.conversion.execution.jobs.PIECE_BYTES", piece_bytes)
    target, found = work
    cluster, notes = Nearby(lasts), Notes()
    with time_limit(), Staging(tmp_path / "out", {}, None) as staging:
        staging.open()
        staging.resume(found.content, restart=False)
        staged = staging.component("")
        outcome = execute(target, found, staged, {}, BUDGET, notes, HOST, cluster=cluster)
        journal = [json.loads(line)["tensor"] for line in (staging.folder / "journal").read_text().splitlines()[1:]]
        staging.publish()
    assert (cluster.losses > 0) == (lasts < 1000)
    assert sorted(journal) == sorted(job.tensor.entry.name for job in found.jobs)
    (progress,) = notes.shown
    assert progress.done == progress.total
    convert(sharded, tmp_path / "local")
    for name, sha256 in outcome.digests.items():
        content = (tmp_path / "out" / name).read_bytes()
        assert content == (tmp_path / "local" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256


def test_a_process_that_is_lost_before_it_finishes_anything(work: tuple[Target, Work], tmp_path: Path) -> None:
    with time_limit(), Staging(tmp_path / "out", {}, None) as staging:
        staging.open()
        staging.resume(work[1].content, restart=False)
        with pytest.raises(errors.ClusterError, match="lost 4 processes in a row"):
            execute(*work, staging.component(""), {}, BUDGET, Notes(), HOST, cluster=Nearby(0))
        staging.discard()


def test_a_file_that_is_another_one_on_a_node(sharded: Path, tmp_path: Path) -> None:
    source = shutil.copytree(sharded, tmp_path / "source")
    target = open_request(source, None, ConvertOptions()).main
    files = [WeightFile.of(header) for header in target.checkpoint.headers]
    find_files(files)
    path = files[0].path
    content = path.read_bytes()
    os.utime(path, ns=(0, files[0].stamp[1] + 1))
    assert str(path) in refusal(lambda: find_files(files), errors.MalformedCheckpoint)
    path.write_bytes(content.replace(b"bias", b"beef"))
    os.utime(path, ns=(0, files[0].stamp[1]))
    assert str(path) in refusal(lambda: find_files(files), errors.MalformedCheckpoint)
    path.unlink()
    text = refusal(lambda: find_files(files), errors.MissingInput)
    assert "Share the source with all nodes" in text


@pytest.mark.parametrize(
    ("recipe", "options", "reason"),
    [
        ("use_svd = true", (), "random numbers"),
        ("use_stochastic_rounding = true", (), "random numbers"),
        ("use_dynamic_quantization = true", (), "the weights decide"),
        ("", ("--device", "cuda"), "on their CPUs"),
        ("", ("--lora", "style.safetensors"), "on one machine only"),
    ],
)
def test_what_nodes_cannot_do_is_refused_before_anything_is_connected(
    recipe: str, options: tuple[str, ...], reason: str, sharded: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    (tmp_path / "r.toml").write_text(f'name = "r"\n[sdnq]\nweights_dtype = "int8"\n{recipe}\n')
    done = lensconv(
        "convert", sharded, tmp_path / "out", "--ray", "127.0.0.1:1", "--recipe", tmp_path / "r.toml", *options
    )
    assert done.code == 2
    assert reason in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_without_an_address_ray_is_not_imported() -> None:
    program = "import sys; import converter.conversion.convert; sys.exit('ray' in sys.modules)"
    assert run_python(program).returncode == 0
