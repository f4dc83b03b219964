"""Make the files of measurements from the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from converter.measurement.benchmark.image_files import BASELINE, has_image, image_key, image_name, image_seed
from converter.measurement.benchmark.journal import LOAD_KEY, TAKEN_OVER, Cell, Journal, is_image_key
from converter.measurement.benchmark.options import MODES, BenchOptions
from converter.measurement.benchmark.pairing import find_pairs, timing_count
from converter.measurement.benchmark.repos import ImageSettings, describe_settings
from converter.measurement.benchmark.subjects import Subject
from converter.measurement.evidence.agreement import measured_times
from converter.measurement.evidence.names import (
    MATRIX_NAME,
    METRICS_NAME,
    MODELS,
    OFFLOAD_NAME,
    ORIGINAL,
    SEQUENTIAL_NAME,
)
from converter.measurement.evidence.pairs import used_log_ratios
from converter.measurement.evidence.statistics import (
    combine,
    combine_stages,
    paired_slowdown,
    shared_figures,
    spread,
    summarise_times,
)
from converter.measurement.evidence.units import DIGITS, LOADED_BYTES
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt

_OFFLOADING = {
    "offload": (OFFLOAD_NAME, "enable_model_cpu_offload"),
    "sequential": (SEQUENTIAL_NAME, "enable_sequential_cpu_offload"),
}


class Assembly:
    """Makes the files of measurements.

    Args:
        journal: the figures and the failures.
        suite: the prompts.
        settings: of each prompt; they differ in the prompt and the seed only.
        subjects: the models, by name.
        environment: the machine and the versions.
        options: say which prompts are timed.
    """

    def __init__(
        self,
        journal: Journal,
        suite: PromptSuite,
        settings: Sequence[ImageSettings],
        subjects: Mapping[str, Subject],
        environment: Mapping[str, Any],
        options: BenchOptions,
    ) -> None:
        self._journal = journal
        self._suite = suite
        self._subjects = subjects
        self._timing_count = timing_count(suite, options)
        known = {cell.mode for cell, _ in (*journal.measured, *journal.failures)}
        self._modes = [mode for mode in MODES if mode in known]
        self._pairs = {mode: find_pairs(journal, suite, options, mode) for mode in self._modes}
        with_images = {cell.mode for cell, key in journal.measured if is_image_key(key)}
        #: The first mode with images, or else the first mode.
        self._matrix_mode = next((mode for mode in MODES if mode in with_images), self._modes[0])
        self._shared = {
            "environment": {**environment, "date": datetime.now(UTC).date().isoformat()},
            "settings": self._settings(settings[0]),
            "sources": {name: subject.source() for name, subject in subjects.items()},
        }

    def files(self) -> dict[str, dict[str, Any]]:
        """Return the contents by file name."""
        matrix = self._matrix()
        found = {METRICS_NAME: self._metrics(matrix), MATRIX_NAME: matrix}
        for mode, (name, method) in _OFFLOADING.items():
            if mode in self._modes:
                found[name] = self._offload(mode, method)
        return found

    def _settings(self, settings: ImageSettings) -> dict[str, Any]:
        return {
            **describe_settings(self._subjects[ORIGINAL].repo, settings),
            **self._drawn_size(),
            "pairs": max(len({pair.pair for pair in found.pairs}) for found in self._pairs.values()),
            "timing_prompts": self._timing_count,
            "modes": self._modes,
            "suite": {
                "name": self._suite.name,
                "sha256": self._suite.sha256,
                "prompts": len(self._suite.prompts),
            },
        }

    def _drawn_size(self) -> dict[str, int]:
        """The size of the images, where the settings leave it to the pipeline."""
        drawn = (found for found in self._journal.measured.values() if "width" in found)
        return next(({key: found[key] for key in ("height", "width")} for found in drawn), {})

    def _matrix(self) -> dict[str, Any]:
        mode = self._matrix_mode
        rows = [self._row(mode, prompt) for prompt in self._suite.prompts]
        matrix: dict[str, Any] = {"schema": "lensconv.matrix/2", "mode": mode, **self._shared, "prompts": rows}
        times = [measured_times(matrix, model) for model in MODELS]
        summary = {**summarise_times(*times), **self._slowdown(mode, "slowdown")}
        return {**matrix, **self._pairs[mode].to_dict(), "summary": summary}

    def _slowdown(self, mode: str, key: str) -> dict[str, Any]:
        """The slowdown under this key; empty if too few pairs were measured."""
        found = paired_slowdown(used_log_ratios(self._pairs[mode].pairs))
        return {key: found.to_dict()} if found else {}

    def _rows(self, mode: str, model: str, key: str) -> list[dict[str, Any]]:
        """The figures of all sessions that have them, or only of those that nothing disturbed, if there are any."""
        found = [
            (cell, figures)
            for (cell, known), figures in sorted(self._journal.measured.items(), key=lambda item: item[0])
            if (cell.mode, cell.model, known) == (mode, model, key)
        ]
        undisturbed = [figures for cell, figures in found if not self._pairs[mode].is_disturbed(cell)]
        return undisturbed or [figures for _, figures in found]

    def _timed(self, mode: str, model: str, key: str) -> list[dict[str, Any]]:
        """The same, without those of images that were not generated alone."""
        return [figures for figures in self._rows(mode, model, key) if "time_s" in figures]

    def _row(self, mode: str, prompt: SuitePrompt) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": prompt.id,
            "scenario": prompt.scenario,
            "seed": prompt.seed,
            "prompt": prompt.prompt,
            "required_text": list(prompt.required_text),
            **{model: self._side(mode, model, prompt) for model in MODELS},
        }
        if image := self._image(ORIGINAL, BASELINE, prompt):
            row[BASELINE] = {"seed": image_seed(BASELINE, prompt), **image}
        return row

    def _side(self, mode: str, model: str, prompt: SuitePrompt) -> dict[str, Any]:
        figures = self._rows(mode, model, prompt.id)
        failed = [
            {"pair": cell.pair, "attempt": cell.attempt, "reason": reason}
            for (cell, key), reasons in sorted(self._journal.failures.items())
            if (cell.mode, cell.model, key) == (mode, model, prompt.id)
            for reason in reasons
        ]
        if not figures:
            return {"failed": failed[-1]["reason"] if failed else "not measured"}
        # Figures of images that were not generated alone have no time.
        timed = [part for part in figures if "time_s" in part]
        side: dict[str, Any] = combine(figures)
        if timed:
            side |= {"times_s": [part["time_s"] for part in timed], **_stages(timed)}
        if image := self._image(model, model, prompt):
            pixels = {
                part["pixels_sha256"]
                for (cell, key), part in self._journal.measured.items()
                if (cell.model, key) == (model, prompt.id)
            }
            side |= {**image, "images_agree": len(pixels) == 1}
        if any(part["worker"] == TAKEN_OVER for part in figures):
            side["taken_over"] = True
        return {**side, "failed_attempts": failed} if failed else side

    def _image(self, model: str, kind: str, prompt: SuitePrompt) -> dict[str, str]:
        """Path and sha256 of an image that was kept; empty if it is missing or was changed."""
        figures = self._journal.measured.get((Cell(self._matrix_mode, 0, 0, model), image_key(kind, prompt)), {})
        image = image_name(kind, prompt)
        if not has_image(figures, self._journal.file.parent / image):
            return {}
        return {"image": image, "image_sha256": figures["image_sha256"]}

    def _metrics(self, matrix: Mapping[str, Any]) -> dict[str, Any]:
        models = {model: self._model(model, matrix) for model in MODELS}
        before, after = (models[model]["transformer"]["bytes"] for model in MODELS)
        loaded = LOADED_BYTES * models[ORIGINAL]["transformer"]["parameters"]
        metrics = {
            "schema": "lensconv.benchmark/2",
            **self._shared,
            "models": models,
            "transformer_storage_reduction_percent": round(100 * (1 - after / before), 1),
            "transformer_storage_reduction_vs_bf16_percent": round(100 * (1 - after / loaded), 1),
        }
        if matrix["mode"] == "standard" and "slowdown" in matrix["summary"]:
            metrics["slowdown"] = matrix["summary"]["slowdown"]
        return metrics

    def _model(self, name: str, matrix: Mapping[str, Any]) -> dict[str, Any]:
        subject = self._subjects[name]
        footprint = subject.footprint()
        model: dict[str, Any] = {
            "label": subject.label,
            "repo_id": subject.repo_id,
            "revision": subject.revision,
            "transformer_storage_gb": round(footprint["bytes"] / 1e9, DIGITS),
            "transformer": footprint,
        }
        loads = self._rows("standard", name, LOAD_KEY)
        if loads:
            model |= {f"load_{key}": value for key, value in combine(loads).items()}
            model["load_times_s"] = [figures["time_s"] for figures in loads]
            model["load_cache_warm"] = all(figures["cache_warm"] for figures in loads)
            model["components"] = loads[0]["components"]
            model |= _int8(loads)
        sides = [row[name] for row in matrix["prompts"] if "time_s" in row[name]]
        if matrix["mode"] == "standard" and sides:
            for key in shared_figures(sides):
                model[f"generation_{key}"] = spread([side[key] for side in sides]).to_dict()
            model |= _stages(sides)
        failed = self._failures("standard", name)
        return {**model, "failed": failed} if failed else model

    def _offload(self, mode: str, method: str) -> dict[str, Any]:
        first, *others = self._suite.prompts
        models = {model: self._offloaded(mode, model, first, others) for model in MODELS}
        return {
            "schema": "lensconv.offload/2",
            "method": method,
            "cold_prompt": first.id,
            "warm_prompts": [prompt.id for prompt in others],
            **self._shared,
            "models": models,
            **self._pairs[mode].to_dict(),
            **self._slowdown(mode, "warm_slowdown"),
        }

    def _offloaded(self, mode: str, name: str, first: SuitePrompt, others: Sequence[SuitePrompt]) -> dict[str, Any]:
        subject = self._subjects[name]
        loads = self._rows(mode, name, LOAD_KEY)
        cold = self._rows(mode, name, first.id)
        warm = [combine(figures) for prompt in others if (figures := self._timed(mode, name, prompt.id))]
        failed = self._failures(mode, name)
        reason = {"failed": failed[-1]["reason"] if failed else "not measured"}
        no_warm = reason if others else {"failed": "the suite has one prompt, which is the cold one"}
        model = {
            "label": subject.label,
            "repo_id": subject.repo_id,
            "setup": combine(loads) if loads else reason,
            "cold": combine(cold) if cold else reason,
            "warm": {key: spread([row[key] for row in warm]).to_dict() for key in shared_figures(warm)} or no_warm,
            "times_s": {
                prompt.id: times
                for prompt in self._suite.prompts
                if (times := [found["time_s"] for found in self._timed(mode, name, prompt.id)])
            },
            **_int8(loads),
        }
        return {**model, "failed": failed} if failed else model

    def _failures(self, mode: str, model: str) -> list[dict[str, Any]]:
        """Failures of images that were not measured later."""
        return [
            {"prompt": key, "pair": cell.pair, "attempt": cell.attempt, "reason": reasons[-1]}
            for (cell, key), reasons in self._journal.failures.items()
            if (cell.mode, cell.model) == (mode, model) and is_image_key(key)
            if (cell, key) not in self._journal.measured
        ]


def _stages(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The stages of several images; empty if the stages of one are not known."""
    return {"stages": combine_stages(rows)} if all("stages" in row for row in rows) else {}


def _int8(loads: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Say how quantized layers computed, if the chain was asked for; all loads are of one kind."""
    return {"int8": loads[0]["int8"]} if loads and "int8" in loads[0] else {}
