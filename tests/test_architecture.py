"""The house: floors, names and papers, read from the source by its syntax tree and from fresh interpreters.

Each check collects what is wrong and where, so that one run shows everything there is to mend.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
PACKAGE = SRC / "mmard"

# Imports go downward or stay on their floor. A folder ends in "/" and stands for everything in it.
FLOORS = {
    0: (
        "_version.py",
        "errors.py",
        "words.py",
        "ops.py",
        "balls.py",
        "modes.py",
        "seeds.py",
        "files.py",
        "trust.py",
        "names.py",
    ),
    1: ("models/", "data/"),
    2: ("batch.py", "method.py", "memory.py", "methods/", "attacks/"),
    3: ("run.py", "ranks.py", "settings.py", "engine/"),
    4: (
        "training/",
        "evaluation/",
        "tables/",
        "deploy/",
        "networks.py",
        "teachers.py",
        "gate.py",
        "catalogue.py",
        "passes.py",
    ),
    5: ("job.py", "plan.py", "api.py", "screen.py", "progress.py", "bench/", "report/", "share/", "study/"),
    6: ("cli/", "__init__.py", "__main__.py"),
}
MUST_NOT_NAME_A_METHOD = ("training/", "attacks/", "evaluation/", "engine/", "report/", "tables/", "study/", "run.py")
EMPTY_WORDS = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "base"}
OPTIONAL = (
    "PIL", "pyarrow", "scipy", "sklearn", "huggingface_hub", "tensorboard", "matplotlib", "autoattack", "pyautoattack",
    "onnx", "onnxruntime", "onnxscript", "torchvision",
    "submitit",
)  # fmt: skip

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}
LEAVES = [path for path in FILES if path.parent == PACKAGE / "methods" and path.name != "__init__.py"]


def within(path: Path, places: tuple[str, ...]) -> bool:
    relative = path.relative_to(PACKAGE).as_posix()
    return any(relative.startswith(place) if place.endswith("/") else relative == place for place in places)


def floors_of(path: Path) -> list[int]:
    return [floor for floor, places in FLOORS.items() if within(path, places)]


def at(path: Path, node: ast.AST | None = None) -> str:
    return path.relative_to(ROOT).as_posix() + (f":{node.lineno}" if hasattr(node, "lineno") else "")


def module_file(dotted: str) -> Path:
    """The file of a module of ours; of one that does not exist, the file that it would be."""
    path = SRC.joinpath(*dotted.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every import in a file, at any depth: the statement and the full name of the module that is meant."""
    package = ["mmard", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield node, inner if module.startswith("mmard") and module_file(inner).exists() else module


def ours(path: Path) -> Iterator[tuple[ast.stmt, Path]]:
    for node, module in imports(path):
        if module.split(".")[0] == "mmard":
            yield node, module_file(module)


def tables() -> dict[str, set[str]]:
    """The keys of METHODS and of PLUGINS, as they stand in the source."""
    path = PACKAGE / "methods" / "__init__.py"
    found = {}
    for node in TREES[path].body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id in ("METHODS", "PLUGINS"):
                    assert isinstance(node.value, ast.Dict), f"{at(path, node)}: expected a dict that is written out"
                    found[target.id] = {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    return found


def words(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every string constant and every identifier."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(word)) | ast.Name(id=word) | ast.Attribute(attr=word):
                yield node, word
            case ast.FunctionDef(name=word) | ast.ClassDef(name=word) | ast.alias(name=word) | ast.alias(asname=word):
                yield node, word
            case ast.arg(arg=word) | ast.keyword(arg=str(word)):
                yield node, word


def none_of(offences: list[str]) -> None:
    assert FILES, f"no source found in {PACKAGE}"
    assert not offences, "\n  ".join(["", *dict.fromkeys(offences)])


def test_no_files_import_each_other_in_a_circle() -> None:
    """Deferred imports and those for types count: what needs them cannot be read without the other either."""
    try:
        TopologicalSorter({path: {file for _, file in ours(path)} - {path} for path in FILES}).prepare()
    except CycleError as circle:
        none_of([" imports ".join(at(path) for path in reversed(circle.args[1]))])


def test_every_file_has_one_floor() -> None:
    none_of(
        [
            f"{at(path)} is on {len(floors)} floors: place it in FLOORS of {Path(__file__).name},"
            " on the lowest floor whose job it does"
            for path in FILES
            if len(floors := floors_of(path)) != 1
        ]
    )


def test_imports_go_downward() -> None:
    offences = []
    for path in FILES:
        for node, target in ours(path):
            here, there = floors_of(path), floors_of(target)
            if here and (not there or there[0] > here[0]):
                floor = f"floor {there[0]}" if there else "no floor"
                offences.append(f"{at(path, node)} on floor {here[0]} imports {at(target)} on {floor}")
    none_of(offences)


def test_a_leaf_imports_no_other_leaf() -> None:
    methods = PACKAGE / "methods"
    none_of(
        [
            f"{at(path, node)} imports {at(target)}: a paper's file stands alone, what two share belongs below them"
            for path in LEAVES
            for node, target in ours(path)
            if target.parent == methods
        ]
    )


def test_nothing_imports_torchvision() -> None:
    tests = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py")}
    none_of(
        [
            at(path, node)
            for path, tree in {**TREES, **tests}.items()
            for node in ast.walk(tree)
            if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "torchvision" for a in node.names))
            or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torchvision")
        ]
    )


def test_the_work_names_no_method() -> None:
    found = tables()
    assert all(found.get(table) for table in ("METHODS", "PLUGINS")), "methods/__init__.py lacks METHODS or PLUGINS"
    names = set.union(*found.values())
    spellings = names | {name.replace("-", "_") for name in names}
    offences = []
    for path in FILES:
        if not within(path, MUST_NOT_NAME_A_METHOD):
            continue
        # The package bears a method's name, so that word alone is innocent; a comparison with it is not.
        compared = {
            id(part)
            for node in ast.walk(TREES[path])
            if isinstance(node, ast.Compare | ast.match_case)
            for part in ast.walk(node.pattern if isinstance(node, ast.match_case) else node)
        }
        offences += [
            f"{at(path, node)} names the method {word!r}: give Method a field that says what is needed"
            for node, word in words(TREES[path])
            if word in spellings and (word != "mmard" or (isinstance(node, ast.Constant) and id(node) in compared))
        ]
    none_of(offences)


def test_no_class_name_has_two_meanings() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in TREES[path].body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(at(path, node))
    none_of([f"{name} is a class in {' and in '.join(found)}" for name, found in places.items() if len(found) > 1])


def test_names_say_something() -> None:
    none_of(
        [
            f"{at(path)}: {part!r} says nothing about what is in it"
            for path in FILES
            for part in path.relative_to(PACKAGE).with_suffix("").parts
            if EMPTY_WORDS & set(part.split("_"))
        ]
    )


def test_every_folder_of_code_is_a_package() -> None:
    none_of(
        [
            f"{at(folder)} has no __init__.py, so the wheel would leave it out"
            for folder in sorted({path.parent for path in FILES})
            if not (folder / "__init__.py").exists()
        ]
    )


def test_what_is_public_is_documented() -> None:
    offences = [at(path) for path in FILES if not ast.get_docstring(TREES[path])]
    for path in FILES:
        for node in TREES[path].body:
            definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if definition and not node.name.startswith("_") and not ast.get_docstring(node):
                offences.append(f"{at(path, node)} {node.name}")
    none_of([f"{offence} has no docstring" for offence in offences])


ARXIV = re.compile(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})", re.IGNORECASE)
VENUE = re.compile(
    r"\b(AAAI|BMVC|CVPR|ECCV|ICCV|ICLR|ICML|ICASSP|IJCAI|IJCV|KDD|NeurIPS|NIPS|TDSC|TIFS|TIP|TMLR|TNNLS|TPAMI|WACV|"
    r"ACM MM|Pattern Recognition|Neurocomputing|Neural Networks)\W+(?:\w+\W+)?(?:19|20)\d\d\b"
)


def source_of(docstring: str) -> str | None:
    """What identifies the paper: the arXiv number of the first paragraph that names a source, or that paragraph."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if number := ARXIV.search(paragraph):
            return number[1]
        if VENUE.search(paragraph):
            return " ".join(paragraph.split())
    return None


def test_every_leaf_can_be_held_beside_its_paper() -> None:
    assert LEAVES, "methods/ holds no leaf"
    offences, sources = [], {}
    for path in LEAVES:
        docstring = ast.get_docstring(TREES[path]) or ""
        if not re.search(r"^ {4,}\S.*(=|argm).*\S", docstring, re.MULTILINE):
            offences.append(f"{at(path)}: no equation, indented by four, in the docstring")
        if not re.search(r"^Differences from ", docstring, re.MULTILINE):
            offences.append(f"{at(path)}: no line 'Differences from ...' in the docstring")
        source = source_of(docstring)
        if source is None:
            offences.append(f"{at(path)}: no source with an arXiv number, or a venue and a year, in the docstring")
        elif source in sources:
            offences.append(
                f"{at(path)}: cites {source} as {at(sources[source])} does; one of them has a copied header"
            )
        else:
            sources[source] = path
    none_of(offences)


def test_the_command_line_imports_torch_only_inside_functions() -> None:
    cli = [path for path in FILES if path.parent == PACKAGE / "cli"]
    assert cli, "there is no cli/"
    none_of(
        [
            f"{at(path, node)} imports {name} at top level, so that --help waits for it"
            for path in cli
            for node, name in imports(path)
            if name.split(".")[0] == "torch" and node in TREES[path].body
        ]
    )


def fresh(code: str) -> str:
    """Standard output of a new interpreter that finds this source and nothing that this process has imported."""
    path = os.pathsep.join([str(SRC), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_images_become_floats_and_levels_in_one_place() -> None:
    """A division or a product by 255 of anything but a number belongs into `as_floats` and `as_levels`.

    The report shows radii and differences in levels.
    """
    found = [
        at(path, node)
        for path, tree in TREES.items()
        if path.relative_to(PACKAGE).as_posix()
        not in ("data/image_set.py", "words.py", "report/runs.py", "report/findings.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Div, ast.Mult))
        for one, other in ((node.left, node.right), (node.right, node.left))
        if isinstance(one, ast.Constant) and one.value == 255 and not isinstance(other, ast.Constant)
    ]
    assert found == []


def test_help_needs_neither_torch_nor_an_optional_package() -> None:
    out = fresh(
        "import sys, mmard, mmard.cli\n"
        "sys.argv = ['mmard', '--help']\n"
        "try:\n    mmard.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('IMPORTED', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    shown, imported = out.rsplit("IMPORTED", 1)
    assert "demo" in shown
    assert not {"torch", *OPTIONAL} & set(imported.split())


def test_every_module_can_be_imported_with_the_core_dependencies_alone() -> None:
    modules = [
        ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path.name != "__main__.py"
    ]
    fresh(
        "import importlib, importlib.abc, sys\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {OPTIONAL}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}: it is optional', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"for module in {modules}:\n    importlib.import_module(module)\n"
    )


@pytest.mark.parametrize(
    ("docstring", "source"),
    [
        ('A. "Title",\nICCV 2021, arXiv:2108.07969.\n\n    x = y', "2108.07969"),
        ('First line.\n\nA, B. "Title", AAAI 2020.\n\nSee also arXiv:1706.06083.', 'A, B. "Title", AAAI 2020.'),
        ("First line.\n\n    loss = ce", None),
    ],
)
def test_the_source_of_a_leaf_is_its_first(docstring: str, source: str | None) -> None:
    assert source_of(docstring) == source
