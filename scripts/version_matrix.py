#!/usr/bin/env python3
"""Run the unit tests against the package's bounds: its lowest dependencies, and every Python it names.

``make test-matrix`` runs this; ``ARGS`` names parts, for example ``lowest``. Each part is an environment
below ``var/matrix`` with the package as its users install it, without the locks of ``requirements``. The
Pythons must be on PATH; a part whose Python is missing fails.
"""

import argparse
import os
import re
import sys

from environments import ROOT, VAR, SetupError, find_uv, remove, run, say, tool_environment

# Name, Python, and how uv chooses the versions of what the package depends on directly.
PARTS = {
    "lowest": ("3.11", "lowest-direct"),
    "3.12": ("3.12", "highest"),
    "3.13": ("3.13", "highest"),
}
EXTRAS = "openlineage,parquet,s3"
# Without a cluster, an engine or a whole Airflow: what `make test-fast` runs.
UNIT_TESTS = "not slow and not chaos and not engine and not e2e and not airflow and not cluster"
TOOLS_BEGIN = "# tests and linters"


def test_tools():
    """Names of what the tests import, from ``requirements/airflow.in``; its linters do no harm."""
    text = (ROOT / "requirements" / "airflow.in").read_text(encoding="utf-8")
    return re.findall(r"^[a-zA-Z].*$", text.partition(TOOLS_BEGIN)[2], re.MULTILINE)


def make(name, env):
    """Make the environment of one part anew; returns its Python."""
    python, resolution = PARTS[name]
    place = VAR / "matrix" / name
    uv = find_uv(sys.executable, env)
    say(f"{place.relative_to(ROOT)}: Python {python}, {resolution} versions …")
    remove(place)
    run([uv, "venv", "--quiet", "--no-python-downloads", "--python", python, str(place)], env)
    target = [uv, "pip", "install", "--quiet", "--python", str(place / "bin/python")]
    run([*target, "--resolution", resolution, f"{ROOT}[{EXTRAS}]"], env)
    # Second, and only what is missing: the tools' newest versions do not change what the package has.
    run([*target, *test_tools()], env)
    return place / "bin/python"


def main():
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--keep", action="store_true", help="test in the environments that an earlier run made"
    )
    parser.add_argument("--pytest", default="", metavar="WORDS", help="more words for pytest")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    env = tool_environment(os.environ)
    failed = []
    for name in options.parts or PARTS:
        try:
            kept = VAR / "matrix" / name / "bin" / "python"
            python = kept if options.keep and kept.exists() else make(name, env)
            parallel = ["-n", env.get("TEST_PROCESSES", "2"), "--dist", "loadgroup"]
            words = [*parallel, "-p", "no:cacheprovider", "-m", UNIT_TESTS, *options.pytest.split()]
            run([str(python), "-m", "pytest", "-q", *words], env)
        except SetupError as error:
            say(f"{name}: {error}")
            failed.append(name)
    say(f"failed: {', '.join(failed)}" if failed else "all parts passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
