"""Workers on a node of a cluster: the same processes as on one machine, and their files.

Paths in jobs are those of the machine of the command. On the node, files are written into a temporary folder, and come
back with the event that says that they are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.measurement.benchmark.job import FAILED, GENERATED, Job, Task
from converter.measurement.benchmark.node_repos import FoundRepo, NodeRepos
from converter.measurement.benchmark.worker_process import WorkerProcess
from converter.temporary import temporary_folder

#: Key of what an event adds: contents of files, by their paths on the machine of the command.
FILES = "files"


class NodeWorker:
    """Starts workers on this node, one after the other.

    Args:
        repos: that jobs are about.
        timeout: seconds without an event after which a worker counts as hanging.
    """

    def __init__(self, repos: NodeRepos, timeout: float) -> None:
        self._places = {shared.folder: found for shared, found in zip(repos.repos, repos.here(), strict=True)}
        self._timeout = timeout
        self._files = ExitStack()
        self._folder = self._files.enter_context(temporary_folder())
        self._fed: _FedWorker | None = None

    def run(self, job: Job, inputs: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
        """Do a job in a process of its own; yield its events.

        Args:
            job: the work, with paths of the machine of the command.
            inputs: contents of the files that tasks read, by path.
        """
        self._stop_fed()
        tasks = self._with_own_paths(job, inputs)
        with WorkerProcess(tasks.job, self._timeout, _nothing) as worker:
            yield from map(tasks.with_files, worker.events())

    def draw(self, job: Job) -> Iterator[dict[str, Any]]:
        """Do the only task of a job, in the process that did the last one if it has the same pipeline.

        Args:
            job: the work.
        """
        (task,) = job.tasks
        tasks = self._with_own_paths(job, {})
        if self._fed is not None and self._fed.pipeline == replace(job, tasks=[]):
            self._fed.process.feed(tasks.job.tasks[0])
        else:
            self._stop_fed()
            self._fed = _FedWorker.start(job, tasks.job, self._timeout)
        for event in self._fed.events:
            yield tasks.with_files(event)
            if event["event"] == GENERATED and event["key"] == task.key:
                return
        # It has failed, and ended.
        self._stop_fed()

    def close(self) -> None:
        """End the worker, and remove the files."""
        self._stop_fed()
        self._files.close()

    def _stop_fed(self) -> None:
        if self._fed is not None:
            self._fed.stack.close()
            self._fed = None

    def _with_own_paths(self, job: Job, inputs: Mapping[str, bytes]) -> _Tasks:
        return _Tasks(job, self._places[job.repo], self._folder, inputs)


@dataclass(frozen=True)
class _FedWorker:
    """A worker that waits for further tasks."""

    pipeline: Job
    """Its first job, without tasks."""
    process: WorkerProcess
    events: Iterator[dict[str, Any]]
    stack: ExitStack
    """Ends it."""

    @classmethod
    def start(cls, job: Job, own: Job, timeout: float) -> _FedWorker:
        """Start a worker with the first task; ``own`` is the job with the paths of this node."""
        stack = ExitStack()
        process = stack.enter_context(WorkerProcess(own, timeout, _nothing, is_fed=True))
        return cls(replace(job, tasks=[]), process, process.events(), stack)


class _Tasks:
    """A job with the paths of this node."""

    def __init__(self, job: Job, place: FoundRepo, folder: Path, inputs: Mapping[str, bytes]) -> None:
        self._theirs = job
        self._place = place
        self._folder = folder
        self._paths: dict[str, Path] = {}
        for path, content in inputs.items():
            self._own(path).write_bytes(content)
        self.job = replace(
            job, repo=place.folder, states=dict(place.states), tasks=[self._translated(task) for task in job.tasks]
        )

    def _own(self, path: str) -> Path:
        return self._paths.setdefault(path, self._folder / f"{len(self._paths)}{Path(path).suffix}")

    def _translated(self, task: Task) -> Task:
        image, trace, replay = (path and str(self._own(path)) for path in (task.image, task.trace, task.replay))
        return replace(task, image=image, trace=trace, replay=replay)

    def with_files(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event with the files that it is about, and without paths of this node."""
        if event["event"] == FAILED:
            event["reason"] = self._with_their_paths(event["reason"])
        task = next((task for task in self._theirs.tasks if task.key == event.get("key")), None)
        if event["event"] != GENERATED or task is None:
            return event
        trace = event.get("trace", {})
        if "failed" in trace:
            trace["failed"] = self._with_their_paths(trace["failed"])
        files = {}
        for path in filter(None, (task.image, task.trace)):
            own = self._own(path)
            if own.exists():
                files[path] = own.read_bytes()
                own.unlink()
        return {**event, FILES: files}

    def _with_their_paths(self, reason: str) -> str:
        for path, own in self._paths.items():
            reason = reason.replace(str(own), path)
        return reason.replace(self._place.folder, self._theirs.repo)


def _nothing() -> None:
    """A node shows nothing."""
