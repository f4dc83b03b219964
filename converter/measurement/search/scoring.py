"""The harms of all choices of a search, measured or read from the journal of a run that was stopped.

weights of the original -> figures and parts of every storage -> recorded calls of the denoiser -> harms
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.cluster.sharing import Work
from converter.console import Progress
from converter.errors import UnsupportedCheckpoint, first_few
from converter.measurement.ablation.subject import DrawnOriginal, open_drawn
from converter.measurement.benchmark.repos import describe_settings
from converter.measurement.prompts.suite import SuitePrompt
from converter.measurement.search.journal import SearchJournal
from converter.measurement.search.options import INPUTS, MEASURED, WEIGHTS
from converter.measurement.search.places import work_folder
from converter.measurement.search.run import SearchRun
from converter.measurement.search.scores import Scores
from converter.measurement.sensitivity.figures import Figures
from converter.measurement.sensitivity.gradients import Harms, mean_harms
from converter.measurement.sensitivity.placed import GradientOptions, Originals, PlacedOriginal, StoredModel
from converter.measurement.sensitivity.recording import find_calls
from converter.measurement.sensitivity.storage import Storage


@dataclass(frozen=True)
class Scoring:
    """The measurement of harms.

    Args:
        run: what they are measured of, and how.
    """

    run: SearchRun

    def measure(self) -> Scores:
        """Measure the harms of every storage of every module.

        Raises:
            InputError: the original cannot be drawn with, or a storage does not work.
            OutputError: the folder has the measurements of another search.
            ResourceError: memory, disk or a device is missing.
        """
        identity = self.run.described.identity(self.run.options.quantize_from)
        with SearchJournal(self.run.folder, identity, restart=self.run.options.restart) as journal:
            if self.run.options.score == WEIGHTS:
                figures = self._scan(list(self._storages.values()), None, journal)
                return self._scores({key: found.noise / (found.energy or 1.0) for key, found in figures.items()}, {})
            found = self._measure_output(journal)
            work_folder(self.run.folder).remove()
            return found

    @property
    def _storages(self) -> dict[tuple[str, str], Storage]:
        return {
            (module.source, storage.key): storage
            for module in self.run.space.modules
            for storage in module.storages.values()
        }

    @property
    def _prompts(self) -> Sequence[SuitePrompt]:
        return self.run.suite.prompts[: self.run.options.calibration_prompts]

    def _measure_output(self, journal: SearchJournal) -> Scores:
        """The harms that what the denoiser computes has a part in."""
        options, prompts = self.run.options, self._prompts
        run = self.run
        drawn = open_drawn(run.original, run.described, run.suite, run.drawing, run.reporter, run.cluster)
        settings = {
            "prompts": [prompt.id for prompt in prompts],
            "calls": options.calls,
            "probes": options.probes,
            "checkpointing": options.checkpointing,
        }
        conditions = drawn.conditions(self.run.suite)
        journal.set_up({**conditions, **settings})
        harms = dict(journal.harms.get(options.score, {}))
        missing = {key: storage for key, storage in self._storages.items() if key not in harms}
        if missing:
            self._scan(list(missing.values()), work_folder(self.run.folder).tensors, journal)
            harms |= self._measure_missing(drawn, list(missing.values()), journal)
        scores = self._scores(
            {key: harms[key] for key in self._storages},
            {
                "suite": {"name": self.run.suite.name, "sha256": self.run.suite.sha256},
                **settings,
                "images": describe_settings(drawn.repo, drawn.settings(prompts[0])),
                "environment": conditions["environment"],
            },
        )
        self._note_without_effect(scores)
        return scores

    def _scan(self, wanted: Sequence[Storage], spool: Path | None, journal: SearchJournal) -> Figures:
        """Measure the weights in every storage, and keep the quantized ones where a spool is given.

        Raises:
            UnsupportedCheckpoint: a storage restores numbers that are not finite.
        """
        by_source: dict[str, list[Storage]] = {}
        for storage in wanted:
            by_source.setdefault(storage.source, []).append(storage)
        run = self.run
        figures = run.described.scan(by_source, run.target.options, spool, journal, run.cluster, run.reporter)
        for found in figures.values():
            if not found.is_finite:
                raise UnsupportedCheckpoint(
                    f"{found.source}: as {self._candidate(found.source, found.key)} it has numbers that are not finite",
                    "Leave that out of --candidates.",
                )
        return figures

    def _measure_missing(self, drawn: DrawnOriginal, missing: Sequence[Storage], journal: SearchJournal) -> Harms:
        run, options = self.run, self.run.options
        prompts = {prompt.id: drawn.settings(prompt) for prompt in self._prompts}
        work = work_folder(run.folder)
        with drawn.load(list(prompts.values()), run.target.options, work, run.reporter) as originals:
            calls = find_calls(originals, prompts, options.calls, work.calls, journal, run.reporter)
            if options.score == MEASURED:
                return self._measure_each(originals, missing, journal)
            if options.score == INPUTS:
                found = self._measure_by_inputs(originals, missing)
            else:
                found = self._estimate(originals, calls, missing, journal)
        journal.note_harms(options.score, found)
        return found

    def _measure_each(self, originals: Originals, missing: Sequence[Storage], journal: SearchJournal) -> Harms:
        """The harm of each storage alone; each is noted as soon as it is known."""
        harms, noting = dict[tuple[str, str], float](), threading.Lock()

        def measure(original: PlacedOriginal, storage: Storage) -> None:
            found = original.harm(StoredModel({storage.source: storage}, self._quantization(storage)))
            with noting:
                harms[storage.source, storage.key] = found
                journal.note_harms(MEASURED, {(storage.source, storage.key): found})
            shown.advance(1)

        with self.run.reporter.progress("measuring", len(missing), "candidates") as shown:
            originals.run(Work({"": missing}), measure, shown)
        return harms

    def _measure_by_inputs(self, originals: Originals, missing: Sequence[Storage]) -> Harms:
        """The harm of all storages, by the inputs of their modules in all calls."""
        found = list[Harms]()
        originals.run(
            Work({"": [missing]}),
            lambda original, storages: found.append(original.harms_by_inputs(storages)),
            Progress(),
        )
        return found[-1]

    def _estimate(self, originals: Originals, calls: int, missing: Sequence[Storage], journal: SearchJournal) -> Harms:
        """The harm of all storages by gradients, in each call by itself."""
        options = GradientOptions(missing, self.run.options.probes, self.run.options.checkpointing)
        keys, noting = {(storage.source, storage.key) for storage in missing}, threading.Lock()
        found = {call: harms for call, harms in journal.estimates.items() if keys <= harms.keys()}
        left = [call for call in range(calls) if call not in found]

        def estimate(original: PlacedOriginal, call: int) -> None:
            harms = original.harms_by_gradients(call, options)
            with noting:
                found[call] = harms
                journal.note_estimate(call, harms)
            shown.advance(options.probes)

        with self.run.reporter.progress("differentiating", len(left) * options.probes, "passes") as shown:
            originals.run(Work({"": left}), estimate, shown)
        return mean_harms(keys, [found[call] for call in range(calls)])

    def _candidate(self, source: str, key: str) -> str:
        """The first candidate that stores a weight in this way."""
        storages = next(module.storages for module in self.run.space.modules if module.source == source)
        return next(name for name, storage in storages.items() if storage.key == key)

    def _quantization(self, storage: Storage) -> Mapping[str, Any]:
        return self.run.space.quantizations[self._candidate(storage.source, storage.key)]

    def _scores(self, harms: Harms, settings: Mapping[str, Any]) -> Scores:
        by_candidate = {
            module.source: {name: harms[module.source, storage.key] for name, storage in module.storages.items()}
            for module in self.run.space.modules
        }
        settings = {"quantize_from": self.run.options.quantize_from, **settings}
        return Scores(by_candidate, self.run.options.score, settings)

    def _note_without_effect(self, scores: Scores) -> None:
        """Say on which modules the output does not depend, since they will get the fewest bytes."""
        without = [
            module.names[0] for module in self.run.space.modules if not any(scores.harms[module.source].values())
        ]
        if without:
            self.run.reporter.note(
                f"the denoiser's output does not depend on {first_few(without)} in these calls; recipes give them the "
                "fewest bytes, unless a rule says otherwise"
            )
