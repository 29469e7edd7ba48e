"""The images that the compose stack starts from: the real ones where they can be had, else stand-ins.

A stand-in is made of Debian's packages by debootstrap, since no registry of images may be in reach: Debian
with Python 3.11 and Airflow from PyPI under the user and paths of Airflow's image; Debian's PostgreSQL with
the variables of PostgreSQL's image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.compose.engine import Engine, EngineError
from tests.conftest import ROOT

HERE = Path(__file__).resolve().parent
DEBIAN = "localhost/arcadia-test-debian:bookworm"
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
AIRFLOW = "localhost/arcadia-test-airflow:{version}"
POSTGRES = "localhost/arcadia-test-postgres:15"


class NoBaseImagesError(Exception):
    """Base images can neither be pulled nor made."""


def base_images(engine: Engine) -> dict[str, str]:
    """Variables of ``docker-compose.yaml`` that name the base images: given, pulled, or made here.

    Raises :class:`NoBaseImagesError`.
    """
    compose = (ROOT / "docker-compose.yaml").read_text(encoding="utf-8")
    real = {
        name: re.search(rf"\$\{{{name}:-([^}}]+)\}}", compose)[1]  # type: ignore[index]
        for name in ("AIRFLOW_IMAGE", "POSTGRES_IMAGE")
    }
    if all(_is_here(engine, image) for image in real.values()):
        return real
    version = real["AIRFLOW_IMAGE"].partition(":")[2].partition("-")[0]
    made = {"AIRFLOW_IMAGE": AIRFLOW.format(version=version), "POSTGRES_IMAGE": POSTGRES}
    chosen = {name: os.environ.get(name) or image for name, image in made.items()}
    if not all(engine.has_image(image) for image in chosen.values()):
        if shutil.which("debootstrap") is None:
            raise NoBaseImagesError("no base image can be pulled, and debootstrap is not installed")
        _make_debian(engine)
        _build(engine, "postgres", chosen["POSTGRES_IMAGE"])
        index = {"PIP_INDEX_URL": os.environ["PIP_INDEX_URL"]} if "PIP_INDEX_URL" in os.environ else {}
        _build(engine, "airflow", chosen["AIRFLOW_IMAGE"], AIRFLOW_VERSION=version, **index)
    return chosen


def _is_here(engine: Engine, image: str) -> bool:
    if engine.has_image(image):
        return True
    try:
        engine.run(
            "pull",
            "--quiet",
            f"docker.io/{image}" if "/" in image else f"docker.io/library/{image}",
            timeout_s=180,
        )
    except (EngineError, subprocess.TimeoutExpired):
        return False
    return engine.has_image(image)


def _make_debian(engine: Engine) -> None:
    """Import Debian as an image, with this machine's certificates: a mirror's may be among them."""
    if engine.has_image(DEBIAN):
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        root, archive = Path(folder) / "root", Path(folder) / "debian.tar"
        words = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=900)
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
        for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / leftover, ignore_errors=True)
            (root / leftover / "partial").mkdir(parents=True)
        packed: list[str | Path] = ["tar", "--create", "--file", archive, "--directory", root, "."]
        subprocess.run(packed, check=True, timeout=300)
        engine.run("import", str(archive), DEBIAN)


def _build(engine: Engine, kind: str, tag: str, **arguments: str) -> None:
    given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    file = HERE / f"Containerfile.{kind}"
    given += ["--network", "host", "--build-arg", f"BASE_IMAGE={DEBIAN}"]
    engine.run("build", *given, "--tag", tag, "--file", str(file), str(HERE), timeout_s=1800)
