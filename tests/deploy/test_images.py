"""The images' recipes: pinned, without root, without a secret; and what is added to vLLM's own."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from types import ModuleType

import pytest
import tomllib

from tests.conftest import ROOT

RECIPES = ("docker/Dockerfile.worker", "docker/Dockerfile.airflow")


def steps(recipe: str) -> list[tuple[str, str]]:
    """(instruction, the rest) of a Dockerfile, comments and continued lines taken out."""
    text = re.sub(r"^#.*\n", "", (ROOT / recipe).read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def ignored(path: str) -> bool:
    """Whether the build's context leaves it out."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    return not any(path == name or path.startswith(f"{name}/") for name in kept)


@pytest.fixture(scope="module")
def additions() -> ModuleType:
    """The program as a module; it is no part of the package."""
    spec = importlib.util.spec_from_file_location("additions", ROOT / "docker" / "additions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_starts_from_a_version_that_an_argument_replaces(recipe: str):
    (first, base), (then, source), *rest = steps(recipe)
    assert (first, then) == ("ARG", "FROM")
    assert re.fullmatch(r"BASE_IMAGE=[a-z]+/[a-z-]+:v?\d+\.\d+\.\d+\S*", base)
    assert source.split()[0] == "${BASE_IMAGE}"
    stages = {words.split(" AS ")[1] for kind, words in [(then, source), *rest] if " AS " in words}
    assert all(words.split()[0] in stages for kind, words in rest if kind == "FROM")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_copies_what_is_there_and_fetches_nothing_unseen(recipe: str):
    for kind, words in steps(recipe):
        assert kind != "ADD"
        assert not re.search(r"curl|wget|https?://|git clone", words)
        if kind == "COPY":
            *sources, _ = [word for word in words.split() if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists()
                assert not ignored(source)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_copies_all_that_the_wheel_is_made_from(recipe: str):
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = {source for kind, words in steps(recipe) if kind == "COPY" for source in words.split()[:-1]}
    assert {*hatch["packages"], *hatch["force-include"]} <= {source.rstrip("/") for source in copied}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_no_secret_and_ends_without_root(recipe: str):
    arguments = [words.split("=")[0] for kind, words in steps(recipe) if kind in {"ARG", "ENV"}]
    assert not [name for name in arguments if re.search(r"TOKEN|PASSWORD|SECRET|KEY", name)]
    users = [words for kind, words in steps(recipe) if kind == "USER"]
    assert users[-1] in {"1000", "airflow"}


def test_the_workers_entry_point_is_the_runtime():
    found = dict(steps(RECIPES[0]))
    assert json.loads(found["ENTRYPOINT"]) == ["python3", "-m", "airflow_arcadia.runtime"]
    assert found["EXPOSE"] == "21002"


def test_the_versions_are_those_the_tests_run_with():
    worker, airflow = ((ROOT / recipe).read_text() for recipe in RECIPES)
    lock = (ROOT / "requirements" / "worker.txt").read_text()
    assert f"\nray=={re.search(r'RAY_VERSION=(.*)', worker)[1]}\n" in lock  # type: ignore[index]
    assert f"\nvllm-cpu=={re.search(r'vllm-openai:v(.*)', worker)[1]}\n" in lock  # type: ignore[index]
    version = re.search(r"AIRFLOW_VERSION=(.*)", airflow)[1]  # type: ignore[index]
    assert f"apache/airflow:{version}-python3.11" in airflow
    assert f"\napache-airflow=={version}\n" in (ROOT / "requirements" / "airflow.txt").read_text()


def test_what_the_base_has_stays_as_it_is_and_the_rest_is_the_locks(additions: ModuleType):
    base = ["torch==2.13.0+cu130", "aiohttp==3.9.0", "Flash.Attn_x==1"]
    lock = ["# a comment", "aiohttp==3.14.5", "    # via ray", "flash-attn-x==2", "nh3==0.3.8", "ray==2.60.0"]
    held = additions.constraints(base, ["ray==2.58.1"], lock)
    assert held == [*base, "ray==2.58.1", "nh3==0.3.8"]


def test_a_base_with_another_ray_is_left_for_pip_to_refuse(additions: ModuleType):
    assert additions.constraints(["ray==2.48.0"], ["ray==2.60.0"], []) == ["ray==2.48.0", "ray==2.60.0"]


def test_vllm_itself_is_never_asked_for(additions: ModuleType):
    wanted = additions.requirements((ROOT / "pyproject.toml").read_text())
    assert {"ray", "fschat"} <= {additions.name_of(line) for line in wanted}
    assert "vllm" not in {additions.name_of(line) for line in wanted}


def test_secrets_for_compose_are_random_and_never_shown_on_a_terminal_by_chance():
    program = str(ROOT / "docker" / "make-env")
    first, second = (
        dict(line.split("=", 1) for line in subprocess.check_output([program], text=True).splitlines())
        for _ in range(2)
    )
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())
    assert all(len(value) >= 44 for value in first.values())


def test_the_workers_kernels_are_loaded_while_the_image_is_built():
    runs = [words for kind, words in steps("docker/Dockerfile.airflow") if kind == "RUN"]
    assert any("apt-get install" in words and "libnuma1" in words for words in runs)
    assert any("import torch, vllm._C" in words for words in runs)
