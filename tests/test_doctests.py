"""Every example runs: in docstrings, in README.md and in docs/."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondlook.agents.encoder import embedded_folder
from secondlook.demo import demo_image

ROOT = Path(__file__).parents[1]
SHIPPED = (embedded_folder() / "open_clip_model.safetensors").is_file()
ROOMS = ("agents", "retrieval", "prompts", "orchestrator", "eval")
NEEDS_MODEL = re.compile(r"\.demo\(\)|demo_model\(")


def modules() -> Iterator[str]:
    yield from ("secondlook", *(f"secondlook.{room}" for room in ROOMS))
    for name in ("", *(f"{room}." for room in ROOMS)):
        # The rooms are mapped into the package, not folders of it: walking the package alone would miss them.
        package = importlib.import_module(f"secondlook.{name}".rstrip("."))
        for found in pkgutil.iter_modules(package.__path__, f"secondlook.{name}"):
            yield found.name


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in modules():
        yield from (test for test in finder.find(importlib.import_module(name)) if test.examples)


@pytest.fixture(scope="module", autouse=True)
def _small_demonstration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Draw fewer leaves for the demonstration model, and keep it from every other test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECONDLOOK_CACHE", str(tmp_path_factory.mktemp("demo")))
        patch.setattr("secondlook.demo.SPLITS", {"train": 4, "calibration": 5})
        patch.setattr("secondlook.demo.VIEWS", 1)
        yield


def skip_without_model(text: str) -> None:
    if NEEDS_MODEL.search(text) and not SHIPPED:
        pytest.skip("the shipped model is not there")


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
def test_the_example_of_a_docstring_runs(
    test: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_model(test.docstring or "")
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False).run(test)
    assert tried
    assert not failed


def blocks() -> list[str]:
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", blocks(), ids=range(len(blocks())))
def test_the_python_of_the_pages_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that holds what a reader would have: a picture, a folder of them, and a model."""
    if not SHIPPED:
        pytest.skip("the shipped model is not there")
    from secondlook.demo import demo_model

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(re.findall(r'"([\w./-]+\.(?:jpg|png))"', block) or ["leaf.jpg"]):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        demo_image("rust", 30_000 + i).save(name)
    demo_image("scab").save(tmp_path / "photos" / "1.jpg")
    for name in re.findall(r'SecondLook\.load\("([\w.-]+)"', block):
        (tmp_path / name).symlink_to(demo_model())
    exec(compile(block, "a page", "exec"), {"__name__": "__main__"})


def test_every_module_of_the_tree_is_walked() -> None:
    files = [path for folder in ("secondlook", *ROOMS) for path in (ROOT / folder).glob("*.py")]
    names = {
        f"secondlook.{path.stem}" if path.parent.name == "secondlook" else f"secondlook.{path.parent.name}.{path.stem}"
        for path in files
        if path.stem != "__init__"
    }
    assert names <= set(modules())
