"""The package and its documents are written in plain engineering English, without words of our own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

_THING = "JSON|file|folder|Jinja|HTTP|URL|pod|CSV|table|number|mapping|manifest|Worker|success|image|object"
PLAIN = {
    r"right when(ever)? (called|it runs|asked)": "idempotent",
    r"right whenever": "idempotent",
    r"at the door": "before anything starts",
    r"last hand": "makes the final changes",
    r"takes? the (trigger|worker|server|cluster)'s word": "resume from the event",
    r"leav(e|es|ing) in order": "leave the controller, then end",
    r"\b(an?|the|one|each) earlier (try|tries)\b": "an earlier attempt",
    r"earlier try's": "of an earlier attempt",
    r"\bsomebody('s| else's)": "of another user",
    r"\bthat (is|are) none\b": "an invalid …",
    rf"(?<!there )\b(is|are) no (valid )?({_THING})\b": "is not a …",
    r"\brooms?\b": "module, package, space or capacity",
    r"\bhas room\b": "has capacity",
    r"\b(does|do) not go(?!\s+(by|on|to|through|into|beyond|away)\b)": "is still terminating",
    r"\bmakes? room\b": "is replaced, space is freed",
    r"\b(desk|lanes?)\b": "endpoint caller, sender",
    r"\bthe house\b": "the project",
}
"""A private idiom → what an engineer of this field would write."""


def pattern(idiom: str) -> re.Pattern[str]:
    """Finds it wherever a line is broken within it, in a comment, too."""
    lookbehind, _, rest = idiom.partition(")") if idiom.startswith("(?<!") else ("", "", idiom)
    prefix = f"{lookbehind})" if lookbehind else ""
    return re.compile(prefix + rest.replace(" ", r"\s+(?:#\s*)?"), re.IGNORECASE)


def documents() -> list[Path]:
    """Everything that a user or a contributor reads."""
    found = [*(ROOT / "airflow_arcadia").rglob("*.py"), *(ROOT / "dags").glob("*.py")]
    found += [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "tests").rglob("README.md")]
    return sorted(path for path in found if path.name != "CHANGELOG.md")


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_it_is_written_in_plain_english(path: Path):
    text = path.read_text(encoding="utf-8")
    found = [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match.group(0)!r}; say: {plain}"
        for idiom, plain in PLAIN.items()
        for match in pattern(idiom).finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "sentence",
    [
        "End it; right when called again, or for nothing.",
        "with everything that does not fit together met at the door",
        "Take the trigger's word.",
        "prompt_template is no Jinja template",
        "Pod x of an earlier\n# try does not go.",
    ],
)
def test_an_idiom_is_found_even_where_a_line_ends_in_it(sentence: str):
    assert any(pattern(idiom).search(sentence) for idiom in PLAIN)
