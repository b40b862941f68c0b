"""The import rules: two planes, the words beneath them, and one module that sees both."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "outrider"
FILES = sorted(SOURCE.rglob("*.py"))
POLICY_FILES = sorted((SOURCE / "dataplane" / "policies").rglob("[!_]*.py"))
POLICIES = [path.relative_to(SOURCE / "dataplane" / "policies").with_suffix("").as_posix() for path in POLICY_FILES]

# Who else, besides the compiler, may know the configuration and a policy: each for one policy it looks after.
KNOWS_BOTH = {
    "controlplane/compile.py": set(POLICIES),  # turns the one into the other
    "controlplane/inbound.py": set(POLICIES),  # the compiler's part for the guard
    "controlplane/limits.py": {
        "concurrency/adaptive",
        "concurrency/limit",
        "rate_limit",
    },  # the compiler, for limits
    "controlplane/credentials.py": {"credentials"},  # the compiler's part for them
    "controlplane/jwks.py": {"guard/tokens"},  # takes issuers' keys by the rules for those in the configuration
    "controlplane/secrets.py": {"credentials", "guard/guard", "guard/tokens"},  # replaces values that have changed
    "controlplane/idempotency/sqlite.py": {"idempotency"},  # keeps what it remembers
    "controlplane/idempotency/redis.py": {"idempotency"},
    "controlplane/idempotency/app.py": {"guard/guard", "idempotency"},  # asks the app as the guard does
    "controlplane/admin/server.py": {"deciders/breaker"},  # shows, opens and closes circuits
}

COMPILER = tuple(f"controlplane/{name}.py" for name in ("compile", "inbound", "limits", "credentials"))

every_module = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def imports(path: Path) -> Iterator[str]:
    """What of ours a module imports, e.g. `model.failure`, inside functions and for type checkers too."""
    package = ["outrider", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "outrider":
                yield name.partition(".")[2] or "__init__"


def planes(path: Path) -> set[str]:
    """The top-level packages and modules of ours that a module imports."""
    return {name.split(".")[0] for name in imports(path)} - {"__version__"}


def policy_classes(path: Path) -> set[str]:
    """The classes of a module that see calls or attempts, or prove who makes them."""
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
        and {"admit", "stamp", "prove"} & {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
    }


def policy_of(name: str) -> str:
    """Which policy an import is of: `deciders/retry` of `dataplane.policies.deciders.retry.Retry`."""
    parts = name.split(".")[2:]
    return next("/".join(parts[:n]) for n in (1, 2) if "/".join(parts[:n]) in POLICIES)


def file_of_tests(policy: str) -> Path:
    """Where the tests of a policy are."""
    path = TESTS / "dataplane" / "policies" / policy
    return path.with_name(f"test_{path.name}.py")


def within(folder: str) -> list[Path]:
    found = [path for path in FILES if name_of(path).startswith(f"{folder}/")]
    assert found
    return found


def test_model_imports_nothing_of_ours_but_itself() -> None:
    """The words depend on nobody."""
    for path in within("model"):
        assert planes(path) <= {"model"}, name_of(path)


def test_model_is_standard_library_only() -> None:
    """The words need nothing installed."""
    for path in within("model"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names | {"outrider"}, f"{name_of(path)}: {name}"


def test_the_data_plane_knows_neither_configuration_nor_control_plane() -> None:
    """What touches calls imports the words, itself, and what keeps blocking work off the event loop."""
    for path in within("dataplane"):
        assert planes(path) <= {"model", "dataplane", "blocking"}, name_of(path)


def test_the_configuration_knows_no_plane() -> None:
    """Reading a file has nothing to do with calls."""
    for path in within("config"):
        assert planes(path) <= {"model", "config", "errors", "files"}, name_of(path)


def test_the_control_plane_does_not_know_who_starts_it() -> None:
    """Neither the command line nor the composition root."""
    for path in within("controlplane"):
        assert not planes(path) & {"cli", "app", "supervisor", "ports", "__main__"}, name_of(path)


def test_only_the_composition_root_and_the_command_line_start_things() -> None:
    """Nothing but `cli` and `__main__` imports `app`, `supervisor` or `cli`."""
    for path in FILES:
        if not name_of(path).startswith(("cli/", "__main__", "app.py", "supervisor.py")):
            assert not planes(path) & {"cli", "app", "supervisor"}, name_of(path)


def test_the_configuration_meets_the_policies_in_one_place() -> None:
    """Only the compiler knows both; a few others look after a policy or two."""
    for path in FILES:
        imported = list(imports(path))
        policies = {policy_of(name) for name in imported if name.startswith("dataplane.policies.")}
        if policies and any(name.startswith("config.") for name in imported):
            assert policies <= KNOWS_BOTH.get(name_of(path), set()), name_of(path)


def test_policies_are_made_in_one_place() -> None:
    """Outside the data plane, only the compiler calls a policy's class."""
    classes = {name for path in POLICY_FILES for name in policy_classes(path)}
    for path in FILES:
        name = name_of(path)
        if name.startswith("dataplane/") or name in COMPILER:
            continue
        tree = ast.parse(path.read_text())
        made = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        policy_names = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("outrider.dataplane.policies")
            for alias in node.names
        }
        assert not made & policy_names & classes, name


def test_no_relative_imports() -> None:
    """Every import says in full where it comes from."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), name_of(path)


@every_module
def test_every_module_says_what_it_is_for(path: Path) -> None:
    """Each file begins with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_has_a_test_file(policy: str) -> None:
    """One file per policy, and one file of tests for each."""
    assert file_of_tests(policy).is_file()


def test_every_policy_test_file_has_its_policy() -> None:
    """No tests are left over from a policy that is gone."""
    assert set((TESTS / "dataplane" / "policies").rglob("test_*.py")) == {file_of_tests(policy) for policy in POLICIES}
