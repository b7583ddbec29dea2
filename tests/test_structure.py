"""What the linters cannot say about the tree."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from dcgan_dist.train import train

ROOT = Path(__file__).parent.parent
LONGEST_MODULE, LONGEST_LOOP = 300, 60
REGISTRY = re.compile(
    r"https?://[\w.-]*(pypi|pythonhosted|anaconda|conda-forge|pytorch|npmjs|docker|ghcr|quay)\b|index-url"
)
MACHINE = re.compile(r"(?<![\w.~$}])/(work|farm|root|tmp/v|home/\w+)/")


def files(*patterns: str) -> list[Path]:
    """Of the tree as git has it or would take it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_no_module_is_long():
    modules = files("dcgan_dist/*.py", "benchmarks/*.py")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules}
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_the_train_loop_is_short_and_ends_in_one_place():
    source, _ = inspect.getsourcelines(train)
    assert len(source) <= LONGEST_LOOP
    nodes = [type(node) for node in ast.walk(ast.parse("".join(source)))]
    assert [nodes.count(kind) for kind in (ast.While, ast.Break, ast.Continue, ast.Return)] == [1, 1, 0, 1]


def test_imports_follow_the_contracts():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert re.search(r"Contracts: \d+ kept, 0 broken\.", result.stdout)


def test_the_algorithm_knows_no_other_processes():
    """Import-linter does not see inside torch."""
    for path in files("dcgan_dist/*.py"):
        if "parallel" not in path.parts:
            assert not re.search(r"torch(\.| import )distributed|torch\.multiprocessing", path.read_text()), path


def test_the_wheel_takes_what_is_no_python_file():
    taken = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    others = [path.relative_to(ROOT) for path in files("dcgan_dist/*") if path.suffix != ".py"]
    assert others
    assert {path for path in others if path.name not in taken.get(".".join(path.parent.parts), [])} == set()


PAGES = files("*.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s#]+)", page.read_text())
    targets = [link for link in links if not re.match(r"\w+:", link)]
    assert [link for link in targets if not (page.parent / link).exists()] == []


def test_there_are_pages():
    assert {"README.md", "CONTRIBUTING.md"} <= {page.name for page in PAGES}


def test_test_files_have_names_of_their_own():
    """Pytest imports them by their bare names."""
    names = Counter(path.name for path in files("tests/*.py") if path.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []


def texts() -> dict[str, str]:
    found = {}
    for path in files():
        if path != Path(__file__):
            try:
                found[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a picture
    return found


@pytest.mark.parametrize("forbidden", [REGISTRY, MACHINE], ids=["registries", "machines"])
def test_the_tree_names_no_registry_and_no_place_on_anyones_machine(forbidden):
    found = {name: forbidden.search(text) for name, text in texts().items()}
    assert {name: match[0] for name, match in found.items() if match} == {}
    assert len(found) > 100


@pytest.mark.parametrize(
    ("pattern", "line", "forbidden"),
    [
        (MACHINE, "cd /home/" + "me/project", True),
        (MACHINE, "PATH=/root/" + ".local/bin", True),
        (MACHINE, "cp $HOME/work/run.sh ./work/", False),
        (REGISTRY, "pip install --index-" + "url x", True),
        (REGISTRY, "https://host/a.tar", False),
    ],
)
def test_the_patterns_find_what_they_should(pattern, line, forbidden):
    assert bool(pattern.search(line)) == forbidden
