"""What an image adds to its base, without changing one version that the base has.

``additions.py BASE.txt ray==2.60.0 /tmp`` reads the base's packages (``pip list --format=freeze``) and writes
two files. ``requirements.txt`` is the ``worker`` extra without vLLM, which the base brings.
``constraints.txt`` has the base's own versions, then the given ones, then the lock's for all that the base
lacks; where they cannot hold together, pip says which. Standard library only: it runs in images that have
nothing of this project yet.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
IN_THE_BASE = "vllm"


def name_of(requirement: str) -> str:
    """Normalised name (PEP 503) of the package that a requirement or a pin is about."""
    name = re.split(r"[\s\[<>=!~;@]", requirement.strip(), maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: Iterable[str]) -> dict[str, str]:
    """``name==version`` lines by name; comments and options are left out."""
    plain = (line.split(" ;")[0].split("#")[0].strip() for line in lines)
    return {name_of(line): line for line in plain if "==" in line and not line.startswith("-")}


def constraints(base: Iterable[str], given: Sequence[str], lock: Iterable[str]) -> list[str]:
    """The versions that hold. A given one stands beside the base's, so that a contradiction is met by pip."""
    fixed = [*pins(base).values(), *given]
    known = {name_of(line) for line in fixed}
    return [*fixed, *(line for name, line in pins(lock).items() if name not in known)]


def requirements(project: str) -> list[str]:
    """The ``worker`` extra of a ``pyproject.toml`` without what the base brings."""
    extra = tomllib.loads(project)["project"]["optional-dependencies"]["worker"]
    return [line for line in extra if name_of(line) != IN_THE_BASE]


def main(base: str, given: str, folder: str) -> None:
    """Write both files into ``folder``."""
    lock = (ROOT / "requirements" / "worker.txt").read_text(encoding="utf-8").splitlines()
    held = constraints(Path(base).read_text(encoding="utf-8").splitlines(), given.split(), lock)
    wanted = requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (Path(folder) / "constraints.txt").write_text("\n".join(held) + "\n", encoding="utf-8")
    (Path(folder) / "requirements.txt").write_text("\n".join(wanted) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
