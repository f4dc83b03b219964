"""Whether the compared times of a file agree with each other: pairs of processes, their sums, and the slowdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converter.measurement.evidence.differences import differences
from converter.measurement.evidence.names import MODELS
from converter.measurement.evidence.pairs import TimedPair, read_pairs, used_log_ratios
from converter.measurement.evidence.statistics import METHOD, compare_prompts, paired_slowdown
from converter.measurement.evidence.units import ROUNDING

#: Seconds that can be measured: a clock has microseconds, and nobody waits for decades.
_LEAST, _MOST = 1e-6, 1e9
#: Half a unit of the last digit of a ratio, and a little for binary fractions.
_RATIO_ROUNDING = 0.000051
#: Figures of a slowdown of the first version that are not computed again: its intervals came from random numbers.
_DRAWN = ("ratio_of_means_percent_interval", "mean_difference_s_interval", "method", "confidence", "resamples", "seed")
#: Fields that only the second version has.
_PAIR_KEYS = ("timed_prompts", "timed_pairs")


def has_pairs(content: Mapping[str, Any]) -> bool:
    """Return whether a file is of a version that compares times over pairs of processes."""
    return str(content["schema"]).endswith("/2")


def check_seconds(where: str, seconds: float | None) -> Iterator[str]:
    """Yield what is wrong with a time that is to be compared; None is a missing time."""
    if seconds is not None and not _LEAST <= seconds <= _MOST:
        yield f"{where} is not between {_LEAST:g} and {_MOST:g} seconds"


def check_method(content: Mapping[str, Any], where: str, slowdown: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield a contradiction if a slowdown belongs to another version of the format than its file."""
    if slowdown is not None and (slowdown.get("method") == METHOD) != has_pairs(content):
        yield f"{where} is not one of a file with schema {content['schema']}"


def check_times(
    content: Mapping[str, Any],
    where: str,
    slowdown: Mapping[str, Any] | None,
    times: Sequence[Mapping[str, float] | None],
    all_times: Sequence[Mapping[str, Sequence[float]]],
) -> Iterator[str]:
    """Yield contradictions between the pairs of a file, the times of its prompts, and its slowdown.

    Args:
        content: of ``comparison_matrix.json`` or an offload benchmark.
        where: name of the slowdown.
        slowdown: what the file says.
        times: for each model, seconds by prompt, of the prompts that a slowdown of the first version is about; None
            where the file does not have them.
        all_times: for each model, the seconds of the measurements by prompt, where the file has them.
    """
    yield from check_method(content, where, slowdown)
    if not has_pairs(content):
        yield from _check_first_version(content, where, slowdown, times)
        return
    missing = [key for key in _PAIR_KEYS if key not in content]
    yield from (f"{key} is missing" for key in missing)
    if missing:
        return
    yield from _check_pairs(content, all_times)
    ratios = used_log_ratios(read_pairs(content))
    computed = paired_slowdown(ratios)
    if (slowdown is None) != (computed is None):
        count = f"{len(ratios)} {'pair' if len(ratios) == 1 else 'pairs'} of processes"
        yield f"{where} is {'missing' if slowdown is None else 'present'}, but {count} were compared"
    elif computed is not None:
        yield from differences(where, slowdown, computed.to_dict())


def _check_first_version(
    content: Mapping[str, Any],
    where: str,
    slowdown: Mapping[str, Any] | None,
    times: Sequence[Mapping[str, float] | None],
) -> Iterator[str]:
    yield from (f"{key} is not part of {content['schema']}" for key in _PAIR_KEYS if key in content)
    if slowdown is not None and all(times):
        shown = {key: value for key, value in slowdown.items() if key not in _DRAWN}
        yield from differences(where, shown, compare_prompts(*(found or {} for found in times)))


def _check_pairs(content: Mapping[str, Any], all_times: Sequence[Mapping[str, Sequence[float]]]) -> Iterator[str]:
    known = content["warm_prompts"] if "warm_prompts" in content else [row["id"] for row in content["prompts"]]
    prompts = content["timed_prompts"]
    for name, count in Counter(prompts).items():
        if name not in known:
            yield f"timed_prompts: {name} is not a prompt whose times are compared"
        elif count > 1:
            yield f"timed_prompts: {name} is listed {count} times"
    attempts = defaultdict[int, list[TimedPair]](list)
    for shown in content["timed_pairs"]:
        where = f"timed_pairs: pair {shown['pair']}, attempt {shown['attempt']}"
        yield from _check_ratio(where, shown)
        pair = TimedPair.from_dict(shown)
        attempts[pair.pair].append(pair)
        if pair.first != MODELS[pair.pair % 2]:
            yield f"{where}: first is {pair.first}, but the order of the models alternates"
        if pair.original_s is not None and not prompts:
            yield f"{where} has times, but timed_prompts is empty"
        yield from _check_sums(where, pair, prompts, all_times)
    for number, found in attempts.items():
        yield from _check_attempts(f"timed_pairs: pair {number}", found)


def _check_ratio(where: str, pair: Mapping[str, Any]) -> Iterator[str]:
    keys = [f"{model}_s" for model in MODELS]
    missing = [key for key in (*keys, "ratio") if key not in pair]
    for key in keys:
        yield from check_seconds(f"{where}: {key}", pair.get(key))
    if 0 < len(missing) <= len(keys):
        yield f"{where}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    elif not missing:
        original, quantized = (pair[key] for key in keys)
        ratio = quantized / original
        if abs(pair["ratio"] - ratio) > _RATIO_ROUNDING:
            yield f"{where}: ratio is {pair['ratio']}, but its times give {ratio:.4f}"


def _check_sums(
    where: str, pair: TimedPair, prompts: Sequence[str], all_times: Sequence[Mapping[str, Sequence[float]]]
) -> Iterator[str]:
    """A sum is between those of the shortest and of the longest times of its prompts.

    The times of a disturbed session may have been left out of those of a prompt.
    """
    for model, seconds, by_prompt in zip(MODELS, (pair.original_s, pair.quantized_s), all_times, strict=True):
        times = [by_prompt.get(name) for name in prompts]
        if seconds is None or pair.disturbed[model] or not all(times):
            continue
        least, most = (sum(choose(found) for found in times if found) for choose in (min, max))
        slack = ROUNDING * (len(times) + 1)
        if not least - slack <= seconds <= most + slack:
            yield f"{where}: {model}_s is {seconds}, but the times of its prompts give {least:.3f} to {most:.3f}"


def _check_attempts(where: str, attempts: Sequence[TimedPair]) -> Iterator[str]:
    numbers = sorted(pair.attempt for pair in attempts)
    if numbers != list(range(len(numbers))):
        yield f"{where} has the attempts {', '.join(map(str, numbers))}"
    used = sum(pair.used for pair in attempts)
    if used > 1:
        yield f"{where} is used {used} times"
    elif not used and any(pair.log_ratio is not None for pair in attempts):
        yield f"{where} has times, but is not used"
