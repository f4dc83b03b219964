"""A suite, and cards that publish it in several shapes."""

from __future__ import annotations

from collections.abc import Callable

from converter.measurement.prompts.suite import PromptSuite, SuitePrompt

#: How many texts the prompts of the published card require.
COUNTS = (5, 5, 5, 3, 5, 4, 5, 3, 5, 5)
SCENES = (
    *("Paper Lantern Alley", "Canal Lock Office", "Volcano Weather Hut", "Long Hotel Notices", "Tram Depot Kitchen"),
    *("Сад за домом", "Glassblower's Attic", "Long Ferry Rules", "Clockmaker's Trial", "Salt Mine Choir"),
)


def make_prompt(number: int) -> SuitePrompt:
    """The prompt of that number, counted from 0, with as many texts as the published one."""
    texts = tuple(f"LABEL {number}-{count}: & MORE" for count in range(COUNTS[number]))
    asked = " ".join(f'Sign {count} (the {count}th) says "{text}".' for count, text in enumerate(texts))
    prompt = f"{SCENES[number]}, painted at dusk. {asked} Fine print."
    return SuitePrompt(f"P{number + 1:02}", SCENES[number], 301 + number, prompt, texts)


SUITE = PromptSuite("made", tuple(make_prompt(number) for number in range(10)))


def plain_card(suite: PromptSuite = SUITE, gap: str = " ") -> str:
    """A card as a browser shows it: no marks, cells between spaces or tabs."""
    rows = [gap.join((p.id, p.scenario, str(p.seed), "19.5", "+3.1%")) for p in suite.prompts]
    sections = [f"{p.id} - {p.scenario}\n\n{p.prompt}" for p in suite.prompts]
    header = gap.join(("ID", "Scenario", "Seed", "Time, s", "Delta"))
    start = "metadata\ntags:\n  - lens\n\nA Card"
    other = "Metric Original Quant\nLoad time, seconds 17 14\n\n    indented = code(P01)"
    ending = "Notes\n\nThis text is about something else."
    return "\n\n".join((start, other, "Matrix", "\n".join((header, *rows)), "Prompts", *sections, ending))


def markdown_card(
    heading: Callable[[SuitePrompt], str] = lambda prompt: f"### {prompt.id} - {prompt.scenario}",
    body: Callable[[SuitePrompt], str] = lambda prompt: prompt.prompt.replace("& MORE", "&amp; MORE"),
    table: Callable[[SuitePrompt], str] | None = lambda prompt: (
        f"| {prompt.id} | {prompt.scenario} | {prompt.seed} | 1 |"
    ),
    header: str = "| ID | Scenario | Seed | Time |\n|:---|---|--:|---|",
    suite: PromptSuite = SUITE,
) -> str:
    """A card in Markdown, in the shape that the parts say."""
    rows = [table(prompt) for prompt in suite.prompts] if table else []
    sections = [f"{heading(prompt)}\n\n{body(prompt)}" for prompt in suite.prompts]
    front = "---\nlicense: mit\ntags:\n# P99 - not a prompt\n---\n# A Card\n\n| Metric | A |\n|---|---|\n| Load | 1 |"
    matrix = "\n".join((header, *rows)) if table else ""
    return "\n\n".join((front, "## Matrix", matrix, "## Prompts", *sections, "## Notes", "Something else."))
