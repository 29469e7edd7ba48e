"""Label and field selectors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Test = Callable[[dict[str, Any]], bool]

_PART = re.compile(r"(?:[^,(]|\([^)]*\))+")
_SET = re.compile(r"(\S+)\s+(in|notin)\s+\((.*)\)")
_EQUAL = re.compile(r"([^=!]+?)\s*(==|=|!=)\s*(.*)")


def by_labels(selector: str | None) -> Test:
    """Test for ``a=b,c!=d,e in (f,g),h,!i``."""
    tests = [_label_test(part.strip()) for part in _PART.findall(selector or "") if part.strip()]
    return lambda found: all(test(found["metadata"].get("labels") or {}) for test in tests)


def by_fields(selector: str | None) -> Test:
    """Test for ``metadata.name=a,involvedObject.uid!=b``."""
    tests = [_field_test(part) for part in (selector or "").split(",") if part]
    return lambda found: all(test(found) for test in tests)


def _label_test(part: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.fullmatch(part):
        key, operator, values = match[1], match[2], {v.strip() for v in match[3].split(",")}
        return lambda labels: (labels.get(key) in values) == (operator == "in")
    if match := _EQUAL.fullmatch(part):
        key, operator, value = match.groups()
        return lambda labels: (labels.get(key) == value) == (operator != "!=")
    if part.startswith("!"):
        return lambda labels: part[1:] not in labels
    return lambda labels: part in labels


def _field_test(part: str) -> Test:
    match = _EQUAL.fullmatch(part)
    assert match, f"field selector {part!r}"
    path, operator, value = match.groups()

    def test(found: dict[str, Any]) -> bool:
        here: Any = found
        for word in path.split("."):
            here = (here or {}).get(word)
        return (str(here if here is not None else "") == value) == (operator != "!=")

    return test
