"""The rules of the tree: who imports whom, what is loaded when, how long a file may be."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("secondlook", "eval", "orchestrator", "retrieval", "agents", "prompts")
"""From left to right."""
FILES = [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))]
LONGEST = 320
HEAVY = ("torch", "chromadb", "langgraph", "openai", "transformers", "sklearn", "scipy", "matplotlib", "open_clip")
TRAINING = (
    "train_leaf_tiny",
    "check_leaf_tiny",
    "leaf_recipe",
    "leaf_augment",
    "leaf_pool",
    "leaf_texts",
    "train_leaf_tiny_vl",
    "check_leaf_tiny_vl",
    "vl_recipe",
    "leaf_dialogues",
    "leaf_vl_folder",
    "leaf_vl_language",
    "leaf_vl_stage",
    "leaf_vl_vision",
)
"""Files that make the packaged weights; nothing that a user runs imports them."""
OWNERS = {
    "torch": {
        "agents/adapted_encoder.py",
        "agents/adapter.py",
        "agents/adapter_training.py",
        "agents/biomedcoop_head.py",
        "agents/checkpoint.py",
        "agents/clip_svd.py",
        "agents/coop_head.py",
        "agents/encoder.py",
        "agents/embedder.py",
        "agents/fakes.py",
        "agents/label_likelihoods.py",
        "agents/long_text.py",
        "agents/lora.py",
        "agents/maple.py",
        "agents/qwen_model.py",
        "agents/qwen_vl.py",
        "agents/random_crops.py",
        "agents/text_tower.py",
        "agents/torchscript.py",
        "agents/towers.py",
        "agents/training_state.py",
        "secondlook/doctor.py",
        "agents/tuned_cache_head.py",
    },
    "open_clip": {"agents/backbones.py", "agents/checkpoint.py", "agents/maple.py", "agents/towers.py"},
    "chromadb": {"retrieval/chroma.py"},
    "langgraph": {"orchestrator/graph.py"},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "secondlook":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS[1:] else "secondlook"


def test_the_rooms_hold_files() -> None:
    assert {path.parent.name for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_to_the_right(path: Path) -> None:
    here = ROOMS.index(path.parent.name)
    for module in imports_of(path):
        room = room_of(module)
        assert room is None or ROOMS.index(room) >= here, f"{name_of(path)} imports {module}"


def test_no_file_imports_a_room_by_its_bare_name() -> None:
    bare = {
        f"{name_of(path)}: {module}"
        for path in [*FILES, *sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
        for module in imports_of(path)
        if module.split(".")[0] in ROOMS[1:]
    }
    assert not bare


def test_the_contracts_of_import_linter_hold(tmp_path: Path) -> None:
    pytest.importorskip("importlinter")
    # The linter does not see through the package mapping, so the rooms are linked as they are installed.
    package = tmp_path / "secondlook"
    package.mkdir()
    for source in [*(ROOT / "secondlook").iterdir(), *(ROOT / room for room in ROOMS[1:])]:
        (package / source.name).symlink_to(source)
    linter = Path(sys.executable).parent / "lint-imports"
    command = [linter, "--no-cache", "--config", ROOT / "pyproject.toml"]
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_too_long_to_be_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_rooms_have_no_sub_packages_and_no_file_for_everything() -> None:
    assert not [path for room in ROOMS for path in (ROOT / room).glob("*/*.py") if "assets" not in path.parts]
    assert not {path.stem for path in FILES} & {"utils", "util", "common", "helpers", "misc", "core"}


@pytest.mark.parametrize("package", OWNERS)
def test_a_heavy_library_is_imported_only_by_the_files_that_own_it(package: str) -> None:
    owners = {
        name_of(path)
        for path in FILES
        if path.stem not in TRAINING and any(module.split(".")[0] == package for module in imports_of(path))
    }
    assert owners <= OWNERS[package]


def imported_at_the_top(path: Path) -> set[str]:
    """Packages that loading a file loads: not those of functions, nor those for type checkers."""
    found: set[str] = set()
    for node in tree_of(path).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in TRAINING], ids=name_of)
def test_loading_a_file_loads_nothing_heavy(path: Path) -> None:
    # The statistics of eval are of no use without scipy; the commands load them when they are called.
    allowed = {"scipy"} if path.parent.name == "eval" else set()
    assert not imported_at_the_top(path) & (set(HEAVY) - allowed)


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint('LOADED', *sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


HELP = """
import sys
sys.argv = ["secondlook", "--help"]
from secondlook.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize("code", ["import secondlook", HELP], ids=["import secondlook", "secondlook --help"])
def test_what_is_heavy_waits_until_it_is_needed(code: str) -> None:
    assert not loaded_by(code) & {*HEAVY, "numpy", "PIL"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            where = f"{name_of(path)}:{node.lineno}: {called}"
            assert not re.fullmatch(r"(c?pickle|dill|joblib|shelve|marshal)\.\w+|eval|exec", called), where
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called != "torch.load" or given.get("weights_only") == "True", where
            assert called not in ("np.load", "numpy.load") or given.get("allow_pickle", "False") == "False", where
            assert called != "yaml.load", where
            assert given.get("shell", "False") == "False", where
            assert given.get("trust_remote_code", "False") == "False", where
    # The name of an error is no reader: torch raises this one for damaged weights.
    foreign = imports_of(path) - {"pickle.UnpicklingError"}
    assert not {module.split(".")[0] for module in foreign} & {"pickle", "dill", "joblib", "shelve", "marshal"}


def undocumented(path: Path) -> list[str]:
    tree = tree_of(path)
    found = [] if ast.get_docstring(tree) else [name_of(path)]
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if not isinstance(node, defined) or node.name.startswith("_"):
            continue
        inner = [child for child in node.body if isinstance(child, defined)] if isinstance(node, ast.ClassDef) else []
        public = [node, *(child for child in inner if not child.name.startswith("_"))]
        found += [f"{name_of(path)}:{child.lineno} {child.name}" for child in public if not ast.get_docstring(child)]
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_public_is_documented(path: Path) -> None:
    assert not undocumented(path)


def test_text_files_of_the_tree_are_shipped_with_the_package() -> None:
    import tomllib

    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    data = tool["package-data"]
    for room in ROOMS[1:]:
        patterns = data.get(f"secondlook.{room}", [])
        others = [p for p in (ROOT / room).iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")]
        missing = [name_of(p) for p in others if not any(p.match(pattern) for pattern in patterns)]
        assert not missing, f"not in package-data: {missing}"
