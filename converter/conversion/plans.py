"""The plans of a conversion: SDNQ's own, kept from an earlier conversion, or predicted while SDNQ plans.

Importing torch, diffusers and SDNQ takes seconds and half a gigabyte. With a kept plan, a conversion does without; with
a prediction, it begins at once, and SDNQ plans in a second process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from converter.console import Reporter
from converter.conversion.plan_cache import PlanCache, cache_folder
from converter.conversion.planner_process import PlanAnswer, PlannerProcess, plan_here
from converter.conversion.planning.plan import refuse_unmatched
from converter.conversion.planning.prediction import predict_plan
from converter.conversion.request import Request, Target
from converter.errors import OutputError, ResourceError
from converter.libraries import are_untouched, is_loaded


@dataclass
class Plans:
    """The plan of each target."""

    request: Request
    reporter: Reporter
    answers: list[PlanAnswer]
    """What each target becomes; whoever learns more replaces it."""
    cache: PlanCache | None
    """Where SDNQ's plans are kept; None to keep nothing."""
    planner: PlannerProcess | None = None
    """In which SDNQ plans, if the only plan is predicted."""

    @property
    def is_predicted(self) -> bool:
        """Whether SDNQ has yet to say that the only plan is right."""
        return self.planner is not None

    def ask_sdnq(self) -> PlanAnswer:
        """Wait for SDNQ's own plan in place of a prediction.

        Raises: what ``plan_here`` raises, if the second process failed.
        """
        target = self.request.main
        answer = (self.planner and self.planner.answer()) or plan_here(target)
        self._keep(target, answer)
        return answer

    def _keep(self, target: Target, answer: PlanAnswer) -> None:
        if self.cache is None:
            return
        try:
            self.cache.keep(target, answer)
        except (OutputError, ResourceError) as error:
            self.reporter.note(f"Note: SDNQ's plan is not kept for later conversions. {error.message}")


@contextmanager
def opened_plans(request: Request, reporter: Reporter) -> Iterator[Plans]:
    """Plan all targets. During the block, SDNQ may still plan in a second process.

    Args:
        request: what to convert.
        reporter: is told if a plan cannot be kept.

    Raises:
        UnsupportedCheckpoint: SDNQ cannot plan a target.
        RecipeError: a rule selects nothing.
    """
    targets = request.targets
    cache = PlanCache(cache_folder()) if request.options.cache and are_untouched() else None
    plans = Plans(request, reporter, _kept(cache, targets), cache)
    try:
        if not plans.answers and (predicted := _predict(request)):
            plans.planner = PlannerProcess(request.main)
            plans.answers = [predicted]
        if not plans.answers:
            plans.answers = [plan_here(target) for target in targets]
            for target, answer in zip(targets, plans.answers, strict=True):
                plans._keep(target, answer)
        refuse_unmatched([target.recipe for target in targets], [answer.plan for answer in plans.answers])
        yield plans
    finally:
        if plans.planner is not None:
            plans.planner.stop()


def _kept(cache: PlanCache | None, targets: tuple[Target, ...]) -> list[PlanAnswer]:
    """The plans that were kept, if they are those of all targets; else none."""
    found = [cache.find(target) for target in targets] if cache else []
    answers = [answer for answer in found if answer is not None]
    return answers if len(answers) == len(targets) else []


def _predict(request: Request) -> PlanAnswer | None:
    # SDNQ that is imported plans in less time than a second process takes to import it. Adapters and calibration need
    # torch in this process, too. A wrong prediction would download the source twice.
    if is_loaded() or len(request.targets) > 1 or request.adapters or request.calibration or request.shadow:
        return None
    plan = predict_plan(request.main.checkpoint, request.main.recipe)
    return PlanAnswer(plan, kernel_agrees=True) if plan is not None else None
