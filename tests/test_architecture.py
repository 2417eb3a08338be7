"""The cut of the packages, checked: who imports whom, where Ray lives, sizes, names, the README's tree."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("trainer", "reward_services")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERY_FILE = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "deploy").rglob("*.py"))]

HOMES = {
    "ray": {
        "trainer/cluster.py",
        "trainer/rank_group.py",
        *(
            f"reward_services/{module}.py"
            for module in ("deployments", "handles", "instruments", "ownership", "replicas")
        ),
    },
    "diffusers": {
        "trainer/policy.py",
        *(
            f"trainer/families/{name}.py"
            for name in ("flux", "index", "previews", "schedules", "sd", "sd3", "sdxl", "weightless")
        ),
    },
    "peft": {"trainer/adapters.py"},
    "wandb": {"trainer/trackers.py"},
    "mlflow": {"trainer/trackers.py"},
    "datasets": {"trainer/data/sources.py"},
    "accelerate": {"trainer/policy.py"},
    "fastapi": {"reward_services/http/app.py"},
    "httpx": {f"reward_services/{module}.py" for module in ("bench", "client", "judges/endpoint")},
    "prometheus_client": {"reward_services/http/metrics.py"},
    "python_multipart": {"reward_services/http/multipart.py"},
    # Reads plain data of clients that send nothing else; and the name of an error, for what reads tensors.
    "pickle": {"reward_services/http/compat/unpickling.py", "reward_services/scorers/weights.py"},
    "vllm": {"reward_services/judges/engine.py"},
    # The modules that need a cluster; the command lines import them inside the function that starts one.
    "trainer.cluster": {"trainer/cli.py", "trainer/rank_group.py"},
    "trainer.rank_group": {"trainer/cli.py"},
    "reward_services.deployments": {"trainer/cluster.py", "reward_services/cli.py"},
    "reward_services.handles": {"reward_services/deployments.py", "reward_services/replicas.py"},
    "reward_services.ownership": {"reward_services/deployments.py"},
    "reward_services.replicas": {"reward_services/deployments.py"},
    "reward_services.instruments": {"reward_services/replicas.py", "trainer/cluster.py"},
}
PURE = {
    "trainer/diffusion.py": {"torch", "trainer.records"},
    "trainer/path_integral.py": {"torch", "trainer.records"},
    "trainer/losses.py": {"torch", "trainer.records"},
    "trainer/solver.py": {"torch", "trainer.diffusion"},
    "trainer/records.py": {"torch"},
    "reward_services/schema.py": {"pydantic", "reward_services.errors"},
}
TRAINER_MAY_IMPORT = {
    "cluster.py": {f"reward_services.{module}" for module in ("config", "deployments", "instruments")},
    "observed.py": {"reward_services.observed"},
    "plan.py": {"reward_services.config_file"},
    "preflight.py": {"reward_services.config", "reward_services.config_file"},
}
FORBIDDEN_WORDS = {"utils", "util", "common", "helpers", "helper", "manager", "processor", "handler", "base"}
FORBIDDEN_WORDS |= {"misc", "abc"}
UNTESTED = {"__init__", "__main__", "records", "algorithm", "running"}  # names and declarations only
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_NESTING = 300, 60, 3

Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Every dotted name a tree imports; `from a import b` gives both `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def modules_of(package: str) -> set[str]:
    files = (path for path in SOURCES if is_inside(relative(path).replace("/", "."), package))
    return {relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files}


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def nesting(node: ast.AST) -> int:
    """Depth of for/while/if/with/try below `node`; an `elif` is as deep as its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and [child] == node.orelse
        block = isinstance(
            child, ast.For | ast.AsyncFor | ast.While | ast.If | ast.With | ast.AsyncWith | ast.Try
        )
        deepest = max(deepest, nesting(child) + int(block and not is_elif))
    return deepest


@pytest.mark.parametrize("library", HOMES)
def test_each_library_is_imported_in_its_home_only(library: str) -> None:
    importers = {
        relative(path) for path in SOURCES if any(is_inside(name, library) for name in imported(parse(path)))
    }
    assert importers <= HOMES[library]


def test_command_lines_import_ray_modules_lazily() -> None:
    for path in SOURCES:
        if path.name == "cli.py":
            at_the_top = [node for node in parse(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = {name for node in at_the_top for name in imported(node)}
            assert not names & {"trainer.cluster", "trainer.rank_group", "reward_services.deployments"}, (
                relative(path)
            )


def test_rewards_know_nothing_of_training() -> None:
    for path in SOURCES:
        if relative(path).startswith("reward_services/"):
            assert not [name for name in imported(parse(path)) if is_inside(name, "trainer")], relative(path)


def test_trainer_uses_only_the_public_names_of_the_rewards() -> None:
    inner = modules_of("reward_services") - {"reward_services"}
    for path in SOURCES:
        if relative(path).startswith("trainer/"):
            allowed = TRAINER_MAY_IMPORT.get(path.name, set())
            assert not (set(imported(parse(path))) & inner) - allowed, relative(path)


@pytest.mark.parametrize("name", PURE)
def test_pure_files_import_nothing_else(name: str) -> None:
    allowed = PURE[name] | sys.stdlib_module_names
    strangers = {
        dotted
        for dotted in imported(parse(ROOT / name))
        if not any(is_inside(dotted, library) for library in allowed)
    }
    assert not strangers


def test_reward_client_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, reward_services; print(*{'torch', 'ray', 'transformers', 'fastapi'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package: str) -> None:
    code = f"import {package}; print(*[n for n in {package}.__all__ if not hasattr({package}, n)])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("path", EVERY_FILE, ids=relative)
def test_size_budget(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree), "a module says in its docstring what it is"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for function in functions(tree):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        assert lines <= MAX_FUNCTION_LINES, f"{function.name} has {lines} lines"
        assert nesting(function) <= MAX_NESTING, f"{function.name} is nested {nesting(function)} deep"


# deploy/ is left out: its scripts are called after the folders they make, such as base/.
@pytest.mark.parametrize("path", [path for path in EVERY_FILE if "deploy" not in path.parts], ids=relative)
def test_names_are_nouns_of_the_field(path: Path) -> None:
    classes = [node.name for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef)]
    for name in [path.stem, *classes]:
        words = set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))
        assert not words & FORBIDDEN_WORDS, name


@pytest.mark.parametrize("package", PACKAGES)
def test_each_module_has_its_test(package: str) -> None:
    stems = {path.stem for path in (ROOT / package).rglob("*.py")} - UNTESTED
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / package).rglob("test_*.py")}
    assert tested == stems


def readme_tree() -> list[Path]:
    """The paths of the README's tree: a code block with a line `trainer/ ...`, two spaces a level."""
    blocks = re.findall(
        r"```[a-z]*\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    lines = next((block for block in blocks if re.search(r"^trainer/", block, flags=re.MULTILINE)), "")
    paths: list[Path] = []
    folders: list[str] = []
    for line in filter(str.strip, lines.splitlines()):
        level = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        paths.append(Path(*folders[:level], name))
        folders[level:] = [name]
    return paths


def test_readme_tree_is_the_tree_on_disk() -> None:
    paths = readme_tree()
    assert [path for path in paths if not (ROOT / path).exists()] == []
    if paths:
        modules = {Path(relative(path)) for path in SOURCES if relative(path).startswith("trainer/")}
        shown_anyway = {Path("trainer/__init__.py"), Path("trainer/__main__.py")}
        assert modules - shown_anyway <= set(paths)
