"""Set-up: what it decides from what is there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def environments() -> ModuleType:
    """The program as a module; it is no part of the package."""
    spec = importlib.util.spec_from_file_location("environments", ROOT / "scripts" / "environments.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    return tmp_path


def test_an_environment_whose_stamp_fits_is_left_alone(environments: ModuleType) -> None:
    assert environments.what_to_do("/here\nabc\n", "/here\nabc\n") == "nothing"


def test_an_interrupted_try_is_made_anew(environments: ModuleType) -> None:
    assert environments.what_to_do(None, "/here\nabc\n") == "anew"


def test_a_changed_lock_is_installed_into_the_environment_there_is(environments: ModuleType) -> None:
    assert environments.what_to_do("/here\nabc\n", "/here\ndef\n") == "update"


def test_an_environment_that_was_moved_is_made_anew(environments: ModuleType) -> None:
    assert environments.what_to_do("/there\nabc\n", "/here\nabc\n") == "anew"


def test_torch_comes_from_a_wheel_folder_that_has_it(environments: ModuleType, wheels: Path) -> None:
    assert environments.torch_arguments(str(wheels)) == ["--find-links", str(wheels)]


def test_torch_comes_from_its_own_index_where_no_folder_has_it(
    environments: ModuleType, tmp_path: Path
) -> None:
    assert environments.torch_arguments("") == ["--torch-backend=cpu"]
    assert environments.torch_arguments(str(tmp_path)) == [
        "--find-links",
        str(tmp_path),
        "--torch-backend=cpu",
    ]


def test_a_python_that_will_not_do_is_named(environments: ModuleType, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho '[[3, 9], \"/usr/bin/python3.9\"]'\n")
    old.chmod(0o755)
    with pytest.raises(environments.SetupError, match=r"python3: Python 3\.9; .*gone: not usable"):
        environments.find_python([str(old), str(tmp_path / "gone")])


def test_the_first_python_that_will_do_is_taken(environments: ModuleType, tmp_path: Path) -> None:
    fitting = tmp_path / "python3"
    fitting.write_text("#!/bin/sh\necho '[[3, 11], \"/opt/python3.11\"]'\n")
    fitting.chmod(0o755)
    assert environments.find_python([None, "/nowhere/python3.11", str(fitting)]) == "/opt/python3.11"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the environments are made with Python 3.11")
def test_of_a_virtual_environment_its_base_is_taken(environments: ModuleType) -> None:
    found = environments.find_python([sys.executable])
    # Never the environment itself: it may be the one to be made anew.
    assert Path(found).resolve() == Path(sys.executable).resolve()
    assert not Path(found).is_relative_to(ROOT)


def test_uv_is_told_what_pip_was_told(environments: ModuleType) -> None:
    env = environments.tool_environment(
        {"PIP_INDEX_URL": "https://mirror.example/simple", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/root"}
    )
    assert env == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "PIP_INDEX_URL": "https://mirror.example/simple",
        "HOME": "/root",
    }


def test_what_uv_itself_was_told_wins(environments: ModuleType) -> None:
    env = environments.tool_environment({"PIP_INDEX_URL": "https://a.example", "UV_DEFAULT_INDEX": "b"})
    assert env["UV_DEFAULT_INDEX"] == "b"


def test_a_linters_setting_is_no_reason_to_install_again(
    environments: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("pyproject.toml", "requirements/airflow.txt", "airflow_arcadia/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    lock = environments.AIRFLOW[1]
    before = environments.fingerprint(lock)
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace("line-length = 110", "line-length = 111"))
    assert environments.fingerprint(lock) == before
    with (tmp_path / lock).open("a") as file:
        file.write("one-more==1.0\n")
    assert environments.fingerprint(lock) != before


@pytest.mark.parametrize(
    ("there", "debian"),
    [((False, True), "libnuma1"), ((True, False), "g\\+\\+"), ((False, False), "libnuma1 g\\+\\+")],
)
def test_what_the_system_lacks_is_told_before_anything_is_downloaded(
    environments: ModuleType, there: tuple[bool, bool], debian: str
):
    needs = [(lambda: there[0], "libnuma1", "numactl-libs"), (lambda: there[1], "g++", "gcc-c++")]
    with pytest.raises(environments.SetupError, match=f"apt-get install {debian};"):
        environments.require_system({}, needs=needs, is_root=lambda: False)


def test_what_the_system_lacks_is_installed_where_this_is_root_on_debian(
    environments: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    ran: list[list[str]] = []
    monkeypatch.setattr(environments, "run", lambda command, env: ran.append(command))
    needs = [(lambda: False, "libnuma1", "numactl-libs"), (lambda: False, "g++", "gcc-c++")]
    environments.require_system({}, needs=needs, is_root=lambda: True, which=lambda name: f"/bin/{name}")
    assert [command[:2] for command in ran] == [["apt-get", "update"], ["apt-get", "install"]]
    assert ran[-1][-2:] == ["libnuma1", "g++"]
    environments.require_system({}, needs=[(lambda: True, "", "")], is_root=lambda: False)


def test_a_machine_without_a_compiler_is_told_from_one_with_it(
    environments: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """PyTorch builds kernels of vLLM's CPU build when the worker starts, which fails at its first token."""
    monkeypatch.delenv("CXX", raising=False)
    assert all(check() for check, _, _ in environments.SYSTEM), "this machine runs workers"
    monkeypatch.setenv("CXX", "g++ -O2")
    assert environments.has_compiler(), "options may follow its name"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not environments.has_compiler()
    monkeypatch.setattr(environments.sysconfig, "get_path", lambda name: str(tmp_path))
    assert not environments.has_headers()


@pytest.mark.parametrize(
    ("env", "found", "is_root"),
    [
        ({}, {"apt-get"}, False),
        ({}, set(), True),
        ({}, {"apt-get", "google-chrome"}, True),
        ({"ARCADIA_CHROMIUM": "/opt/chromium"}, {"apt-get"}, True),
    ],
)
def test_no_browser_is_installed_where_there_is_one_or_this_is_not_root_on_debian(
    environments: ModuleType, monkeypatch: pytest.MonkeyPatch, env, found, is_root
):
    monkeypatch.setattr(environments, "run", lambda command, env: pytest.fail(f"ran {command}"))
    environments.offer_chromium(env, is_root=lambda: is_root, which=lambda name: name in found)


def test_a_browser_is_installed_where_this_is_root_on_debian(
    environments: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    ran: list[list[str]] = []
    monkeypatch.setattr(environments, "run", lambda command, env: ran.append(command))
    environments.offer_chromium({}, is_root=lambda: True, which=lambda name: name == "apt-get")
    assert [command[:2] for command in ran] == [["apt-get", "update"], ["apt-get", "install"]]
    assert ran[-1][-1] == "chromium"


def test_a_browser_that_cannot_be_installed_is_told_and_no_error(
    environments: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(command: list[str], env: dict[str, str]) -> None:
        raise environments.SetupError("apt-get failed")

    monkeypatch.setattr(environments, "run", fail)
    environments.offer_chromium({}, is_root=lambda: True, which=lambda name: name == "apt-get")
    assert "tests of the pages are skipped" in capsys.readouterr().out
