"""From what the journal holds to the files of measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from converter.checkpoint.checksum import file_sha256
from converter.measurement.benchmark.job import BASELINE_SEED_OFFSET
from converter.measurement.benchmark.journal import LOAD_KEY, Cell, Journal
from converter.measurement.benchmark.measuring import baseline_key, image_name
from converter.measurement.benchmark.options import MODES
from converter.measurement.benchmark.subjects import ORIGINAL, Subject
from converter.measurement.evidence.agreement import measured_times
from converter.measurement.evidence.names import MATRIX_NAME, METRICS_NAME, MODELS, OFFLOAD_NAME, SEQUENTIAL_NAME
from converter.measurement.evidence.statistics import (
    combine,
    combine_stages,
    percent_change,
    shared_figures,
    spread,
    summarise_times,
)
from converter.measurement.evidence.units import DIGITS
from converter.measurement.generation.settings import Settings
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.models.lens.resolutions import RESOLUTIONS

_OFFLOADING = {
    "offload": (OFFLOAD_NAME, "enable_model_cpu_offload"),
    "sequential": (SEQUENTIAL_NAME, "enable_sequential_cpu_offload"),
}
#: Bytes of a weight as everybody loads it, in bfloat16.
_LOADED_BYTES = 2


class Assembly:
    """Makes the files of measurements.

    Args:
        journal: what was measured.
        suite: the prompts.
        settings: of each prompt; all but the prompt and the seed are the same.
        subjects: the models, by name.
        environment: the machine and the versions.
    """

    def __init__(
        self,
        journal: Journal,
        suite: PromptSuite,
        settings: Sequence[Settings],
        subjects: Mapping[str, Subject],
        environment: Mapping[str, Any],
    ) -> None:
        self._journal = journal
        self._suite = suite
        self._subjects = subjects
        cells = {cell for cell, _ in (*journal.measured, *journal.failures)}
        self._modes = [mode for mode in MODES if any(cell.mode == mode for cell in cells)]
        drawn = {cell.mode for cell, key in journal.measured if key != LOAD_KEY}
        #: The first mode that gave images, or else that should have.
        self._matrix_mode = next((mode for mode in MODES if mode in drawn), self._modes[0])
        self._repeats = {mode: sorted({cell.repeat for cell in cells if cell.mode == mode}) for mode in self._modes}
        self._shared = {
            "environment": {**environment, "date": datetime.now(UTC).date().isoformat()},
            "settings": self._settings(settings[0]),
            "sources": {name: subject.source() for name, subject in subjects.items()},
        }

    def files(self) -> dict[str, dict[str, Any]]:
        """Contents by file name."""
        matrix = self._matrix()
        found = {METRICS_NAME: self._metrics(matrix), MATRIX_NAME: matrix}
        for mode, (name, method) in _OFFLOADING.items():
            if mode in self._modes:
                found[name] = self._offload(mode, method)
        return found

    def _settings(self, settings: Settings) -> dict[str, Any]:
        sizes = [
            (base, ratio)
            for base, table in RESOLUTIONS.items()
            for ratio, size in table.items()
            if size == (settings.height, settings.width)
        ]
        base, ratio = sizes[0] if sizes else (None, None)
        return {
            "base_resolution": base,
            "aspect_ratio": ratio,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "height": settings.height,
            "width": settings.width,
            "dtype": settings.dtype,
            "date": settings.date,
            "negative_prompt": settings.negative_prompt,
            "repeats": max((len(repeats) for repeats in self._repeats.values()), default=1),
            "modes": self._modes,
            "suite": {
                "name": self._suite.name,
                "sha256": self._suite.sha256,
                "prompts": len(self._suite.prompts),
            },
        }

    def _matrix(self) -> dict[str, Any]:
        mode = self._matrix_mode
        rows = [self._row(mode, prompt) for prompt in self._suite.prompts]
        matrix: dict[str, Any] = {"schema": "lensconv.matrix/1", "mode": mode, **self._shared, "prompts": rows}
        times = [measured_times(matrix, model) for model in MODELS]
        return {**matrix, "summary": summarise_times(*times)}

    def _row(self, mode: str, prompt: SuitePrompt) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": prompt.id,
            "scenario": prompt.scenario,
            "seed": prompt.seed,
            "prompt": prompt.prompt,
            "required_text": list(prompt.required_text),
            **{model: self._side(mode, model, prompt) for model in MODELS},
        }
        times = [row[model].get("time_s") for model in MODELS]
        if all(times):
            row["delta_percent"] = percent_change(*times)
        seed = prompt.seed + BASELINE_SEED_OFFSET
        image = image_name("baseline", prompt, seed)
        kept = self._kept(ORIGINAL, baseline_key(prompt), image)
        if kept is not None:
            row["baseline"] = {"seed": seed, "image": image, "image_sha256": kept}
        return row

    def _side(self, mode: str, model: str, prompt: SuitePrompt) -> dict[str, Any]:
        figures = self._measured(mode, model, prompt.id)
        failures = {
            repeat: reasons
            for repeat in self._repeats[mode]
            if (reasons := self._journal.failures.get((Cell(mode, repeat, model), prompt.id)))
        }
        if not figures:
            reasons = [reason for repeat in failures for reason in failures[repeat]]
            return {"failed": reasons[-1] if reasons else "not measured"}
        side = {
            **combine(figures),
            "times_s": [part["time_s"] for part in figures],
            "stages": combine_stages(figures),
        }
        image = image_name(model, prompt, prompt.seed)
        kept = self._kept(model, prompt.id, image)
        if kept is not None:
            side["image"] = image
            side["image_sha256"] = kept
            side["images_agree"] = len({part["pixels_sha256"] for part in self._drawn(model, prompt.id)}) == 1
        failed = [(repeat, reason) for repeat, reasons in failures.items() for reason in reasons]
        if failed:
            side["failed_attempts"] = [{"repeat": repeat, "reason": reason} for repeat, reason in failed]
        return side

    def _metrics(self, matrix: Mapping[str, Any]) -> dict[str, Any]:
        models = {model: self._model(model, matrix) for model in MODELS}
        before, after = (models[model]["transformer"]["bytes"] for model in MODELS)
        loaded = _LOADED_BYTES * models[ORIGINAL]["transformer"]["parameters"]
        metrics = {
            "schema": "lensconv.benchmark/1",
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
        loads = self._measured("standard", name, LOAD_KEY)
        if loads:
            together = combine(loads)
            model |= {f"load_{key}": value for key, value in together.items()}
            model["load_times_s"] = [figures["time_s"] for figures in loads]
            model["load_cache_warm"] = all(figures["cache_warm"] for figures in loads)
            model["components"] = loads[0]["components"]
        sides = [row[name] for row in matrix["prompts"] if "time_s" in row[name]]
        if matrix["mode"] == "standard" and sides:
            for key in shared_figures(sides):
                model[f"generation_{key}"] = spread([side[key] for side in sides]).to_dict()
            model["stages"] = combine_stages(sides)
        failed = self._failures("standard", name)
        if failed:
            model["failed"] = failed
        return model

    def _offload(self, mode: str, method: str) -> dict[str, Any]:
        first, *others = self._suite.prompts
        content: dict[str, Any] = {
            "schema": "lensconv.offload/1",
            "method": method,
            "cold_prompt": first.id,
            "warm_prompts": [prompt.id for prompt in others],
            **self._shared,
            "models": {model: self._offloaded(mode, model, first, others) for model in MODELS},
        }
        found = summarise_times(*(self._medians(mode, model, others) for model in MODELS))
        return {**content, "warm_slowdown": found["slowdown"]} if "slowdown" in found else content

    def _offloaded(self, mode: str, name: str, first: SuitePrompt, others: Sequence[SuitePrompt]) -> dict[str, Any]:
        subject = self._subjects[name]
        loads = self._measured(mode, name, LOAD_KEY)
        cold = self._measured(mode, name, first.id)
        warm = [combine(figures) for prompt in others if (figures := self._measured(mode, name, prompt.id))]
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
                if (times := [found["time_s"] for found in self._measured(mode, name, prompt.id)])
            },
        }
        return {**model, "failed": failed} if failed else model

    def _measured(self, mode: str, model: str, key: str) -> list[dict[str, Any]]:
        """What was measured of one thing, by repeat."""
        found = (self._journal.measured.get((Cell(mode, repeat, model), key)) for repeat in self._repeats.get(mode, ()))
        return [figures for figures in found if figures is not None]

    def _drawn(self, model: str, key: str) -> Iterable[dict[str, Any]]:
        for (cell, name), figures in self._journal.measured.items():
            if cell.model == model and name == key:
                yield figures

    def _kept(self, model: str, key: str, image: str) -> str | None:
        """sha256 of an image that was kept; None where it is no longer what was drawn."""
        figures = self._journal.measured.get((Cell(self._matrix_mode, 0, model), key), {})
        digest: str | None = figures.get("image_sha256")
        return digest if digest is not None and digest == file_sha256(self._journal.file.parent / image) else None

    def _medians(self, mode: str, model: str, prompts: Sequence[SuitePrompt]) -> dict[str, float]:
        found = {}
        for prompt in prompts:
            times = [figures["time_s"] for figures in self._measured(mode, model, prompt.id)]
            if times:
                found[prompt.id] = statistics.median(times)
        return found

    def _failures(self, mode: str, model: str) -> list[dict[str, Any]]:
        """What failed and was not measured later."""
        return [
            {"prompt": key, "repeat": cell.repeat, "reason": reasons[-1]}
            for (cell, key), reasons in self._journal.failures.items()
            if cell.mode == mode and cell.model == model and (cell, key) not in self._journal.measured
        ]
