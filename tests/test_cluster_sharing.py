"""Work that several processes share, and figures that do not depend on how it was shared."""

from __future__ import annotations

from converter.cluster.sharing import Work
from converter.errors import ImageError
from converter.measurement.ablation.failures import Failures
from converter.measurement.prompts.suite import SuitePrompt

PROMPTS = [SuitePrompt(f"P{number}", "Sign", number, "a sign", ()) for number in range(4)]


def test_one_worker_takes_all_groups_in_their_order() -> None:
    work = Work({"a": [1, 2], "none": [], "b": [3, 4, 5], "c": [6]})
    assert work.size == 6
    found, group = [], None
    while (taken := work.take(group)) is not None:
        group, item = taken
        found.append(item)
    assert found == [1, 2, 3, 4, 5, 6]
    assert work.size == 0


def test_workers_begin_different_groups_and_then_help_with_the_largest() -> None:
    work = Work({"a": [1, 2], "b": [3, 4, 5, 6], "c": [7]})
    assert [work.take(), work.take()] == [("a", 1), ("b", 3)]
    assert work.take("a") == ("a", 2)
    assert work.take("a") == ("c", 7)
    assert work.take("c") == ("b", 4)
    work.put_back("b", 3)
    assert [work.take("b"), work.take("b"), work.take(), work.take()] == [("b", 3), ("b", 5), ("b", 6), None]


def test_the_first_prompt_that_fails_counts_whoever_was_faster() -> None:
    failures = Failures(PROMPTS)
    assert failures.counted("digest") == PROMPTS
    failures.note("digest", PROMPTS[3], ImageError("later"))
    failures.note("digest", PROMPTS[1], ImageError("earlier"))
    failures.note("digest", PROMPTS[2], ImageError("between"))
    assert failures.reason("digest") == "earlier"
    assert failures.counted("digest") == PROMPTS[:1]
    assert failures.reason("other") is None
