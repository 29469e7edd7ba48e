"""YAML whose mistakes are errors: a duplicate key, and a file that is too large or nested too deeply."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MAX_CHARACTERS = 1_048_576  # what a ConfigMap may hold
MAX_DEPTH = 50
MAX_NODES = 200_000
"""With every alias counted as often as it is used: a few lines of YAML can stand for gigabytes."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def load_all(text: str) -> list[Any]:
    """The documents of a text, without empty ones. Raises :class:`yaml.YAMLError` with the line at fault."""
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text)} characters, more than {MAX_CHARACTERS}")
    loader = _Loader(text)
    found = []
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                break
            _Size().check(node)
            found.append(loader.construct_document(node))
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # e.g. a number of more digits than Python converts
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()
    return [document for document in found if document is not None]


class _Size:
    """The size of a document with its aliases expanded."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

    def check(self, node: yaml.Node) -> None:
        """Raise :class:`yaml.YAMLError` for a document that is too deep, too large, or contains itself."""
        if self._size(node, 0) > MAX_NODES:
            raise yaml.YAMLError(f"it has more than {MAX_NODES} values with its aliases expanded")

    def _size(self, node: yaml.Node, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise _too_deep()
        known = self._sizes.get(id(node))
        if known is None:
            known = 1 + sum(self._size(child, depth + 1) for child in _children(node))
            self._sizes[id(node)] = known
        return known


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _too_deep() -> yaml.YAMLError:
    return yaml.YAMLError(f"it is nested more than {MAX_DEPTH} levels deep")
