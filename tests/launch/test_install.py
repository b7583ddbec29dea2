"""launch/install.sh with stand-ins for pip and uv."""

import os
import shutil
import subprocess

import pytest
from support.launching import ROOT

PYTHON = """#!/usr/bin/env bash
case " $* " in
  *" config list "*) cat "$PWD/pip_settings" ;;
  *" install "*) echo "pip $*" >>"$PWD/calls" ;;
esac
"""
UV = """#!/usr/bin/env bash
echo "uv index=$UV_INDEX links=$UV_FIND_LINKS default=$UV_DEFAULT_INDEX" >>"$PWD/calls"
echo "$*" >"$PWD/uv_options"
echo "uv found no version" >&2
exit "$UV_CODE"
"""


@pytest.fixture
def project(tmp_path):
    for place, text in {".venv/bin/python": PYTHON, "bin/uv": UV}.items():
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(text)
        (tmp_path / place).chmod(0o755)
    (tmp_path / "launch").mkdir()
    shutil.copy2(ROOT / "launch" / "install.sh", tmp_path / "launch")
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def install(project, settings, code):
    (project / "pip_settings").write_text(settings)
    env = os.environ | {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "UV_CODE": str(code)}
    result = subprocess.run(
        ["bash", project / "launch/install.sh"], env=env, capture_output=True, text=True, check=True
    )
    return (project / "calls").read_text().splitlines(), result


@pytest.mark.parametrize("between", ["\\n", " "])
@pytest.mark.parametrize("before", ["", "\\n"])
def test_several_values_of_a_setting_of_pip_reach_uv(project, between, before):
    """pip prints those that stand on lines of their own with a backslash and n between them."""
    settings = (
        "global.extra-index-" + f"url='{before}https://a/s{between}https://b/s'\nglobal.find-links='/w{between}/x'\n"
    )
    calls, _ = install(project, settings, 0)
    assert calls == ["uv index=https://a/s https://b/s links=/w,/x default="]


def test_where_uv_does_not_succeed_pip_tries_without_an_error_before(project):
    calls, result = install(project, "", 1)
    assert [call.split()[0] for call in calls] == ["uv", "pip"]
    assert result.stderr == ""
    assert result.stdout.endswith("uv is not there or did not succeed; pip installs, which takes longer ...\n")


def test_packages_are_compiled_for_users_who_may_not_write_bytecode(project):
    """Else each of their processes compiles PyTorch."""
    install(project, "", 0)
    assert "--compile-bytecode" in (project / "uv_options").read_text().split()
