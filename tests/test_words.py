"""Words that docs/glossary.md replaced: in no public name, docstring, page or description of a setting."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from backend.settings import Settings

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "backend").rglob("*.py"))
# History keeps the words of its time, and the glossary names what it replaces.
PAGES = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"}
    - {ROOT / "CHANGELOG.md", ROOT / "docs" / "experiments.md", ROOT / "docs" / "glossary.md"}
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# Parts of names: `is_trusted_mark` has is, trusted, mark. Words whose ordinary sense is needed everywhere (part, kind,
# known, own, figures, finished, seed, step, turn, look, pictures) are left out.
BANNED_PARTS = {
    "kinship", "cohesion", "kindframe", "exemplar", "exemplars", "support", "template", "templates", "query",
    "queries", "cell", "cells", "descriptor", "descriptors", "click", "clicks", "proposal", "proposals", "trace",
    "traces", "category", "categories", "doubt", "doubts", "doubted", "strange", "inside", "outside", "evidence",
    "weigh", "weighs", "trust", "trusted", "recipe", "recipes", "judge", "judges", "judged", "refusal",
    "refusals", "demands", "crumb", "crumbs", "speck", "specks", "together", "gate", "gates", "interruption",
    "uninterrupted", "upkeep", "events", "marks", "markings", "told", "claim", "claims", "claimed", "shift",
    "shifts", "lanes",
}  # fmt: skip
BANNED_NAMES = re.compile(
    r"own_threshold|good_batch|encode_later|recorded_pass|look_through|hand(ed)?_on\b|take(n)?_in\b|bring_back|"
    r"unknown_look|finished_mask"
)
ALLOWED_NAMES = {
    "recipe": "a setting and an extra param that users have",
    "markings": "a flag of `evaluate` that users have",
    "trust_env": "an attribute of requests.Session",
    "trust": "how far the host of an image is trusted",
    "MOST_MARKS": "a mark is one positive point, box or stroke of a scribble",
    "MANY_MARKS": "likewise",
    "cells": "of the grid in SAM's mask decoder, whose own word it is",
    "queries": "of an attention",
    "to_coco_annotation.category": "COCO's own word",
    "query": "of an address or of SQL",
}
# Of pages, code left out. Ordinary senses are left out by the neighbours a word needs.
BANNED_PHRASES = re.compile(
    r"\b(kinships?|cohesion|exemplars?|KindFrame|strange similarit\w+|crumbs?|specks?|doubt(s|ed)?|upkeep|"
    r"(mask )?proposals?|recipes?|markings|refusals?|unknown look-alikes?|own thresholds?|(is|are) judged|"
    r"hand(s|ed)? on to|look(s|ed)? through|good batch|recorded pass(es)?|finished masks?|support (image|mask)s?|"
    r"query images?|query masks?|test images?|claims? of tasks|work shifts?|lanes)\b",
    re.IGNORECASE,
)
FIRST_WORDS = ("Of", "They", "It", "What", "Whoever")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def public_names(tree: ast.Module) -> Iterator[str]:
    """Classes, functions, their arguments, attributes and constants, without those of anything private."""
    yield from _names_in(tree, "")


def _names_in(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield child.name
            yield from _names_in(child, f"{child.name}.")
        elif isinstance(child, FUNCTIONS):
            if not child.name.startswith("_"):
                yield child.name
            if not child.name.startswith("_") or child.name == "__init__":
                arguments = child.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                yield from (f"{child.name}.{each.arg}" for each in every)
            yield from (
                each.attr for each in ast.walk(child) if isinstance(each, ast.Attribute) and _is_set_on_self(each)
            )
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            nodes = [each for target in targets for each in ast.walk(target)]
            yield from (each.id for each in nodes if isinstance(each, ast.Name) and not each.id.startswith("_"))


def _is_set_on_self(node: ast.Attribute) -> bool:
    is_own = isinstance(node.value, ast.Name) and node.value.id == "self"
    return is_own and isinstance(node.ctx, ast.Store) and not node.attr.startswith("_")


def parts_of(name: str) -> list[str]:
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)]


def is_banned(name: str) -> bool:
    last = name.rpartition(".")[2]
    if name in ALLOWED_NAMES or last in ALLOWED_NAMES:
        return False
    return not BANNED_PARTS.isdisjoint(parts_of(last)) or BANNED_NAMES.search(last) is not None


def docstrings(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    """Name and docstring of a module, its public classes and functions."""
    if text := ast.get_docstring(node):
        yield name, text
    for child in node.body:
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)) and not child.name.startswith("_"):
            if isinstance(child, ast.ClassDef):
                yield from docstrings(child, f"{name}.{child.name}")
            elif text := ast.get_docstring(child):
                yield f"{name}.{child.name}", text


def test_parts_of_names() -> None:
    assert parts_of("ClaimOf_TOLD_boxesXY2") == ["claim", "of", "told", "boxes", "xy", "2"]
    names = list(
        public_names(ast.parse("class A:\n def b(self, c, *, d): self.e = 1\n def _f(self, g): ...\nH, J = 1, 2\n"))
    )
    assert names == ["A", "b", "b.self", "b.c", "b.d", "e", "H", "J"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("told", True), ("tolderance", False), ("MaskProposal", True), ("f.claims", True), ("Session.trust_env", False)],
)
def test_banned_words_are_parts_of_names(name: str, expected: bool) -> None:
    assert is_banned(name) is expected


def test_public_names_have_the_glossarys_words() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name in public_names(tree_of(path))
        if is_banned(name)
    }
    assert sorted(found) == []


def test_every_exception_is_in_use() -> None:
    names = {name for path in SOURCES for name in public_names(tree_of(path))}
    known = names | {name.rpartition(".")[2] for name in names}
    assert sorted(ALLOWED_NAMES.keys() - known) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_have_the_glossarys_words(page: Path) -> None:
    text = re.sub(
        r"^ *```.*?^ *```|`[^`]*`|<!--.*?-->|\]\([^)]*\)", "", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    assert [match.group() for match in BANNED_PHRASES.finditer(text)] == []


def test_docstrings_have_the_glossarys_words() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}: {match.group()}"
        for path in SOURCES
        for name, text in docstrings(tree_of(path), path.stem)
        for match in BANNED_PHRASES.finditer(re.sub(r"`[^`]*`", "", text))
    }
    assert sorted(found) == []


@pytest.mark.parametrize("field", Settings.model_fields)
def test_descriptions_of_settings_have_the_glossarys_words(field: str) -> None:
    text = Settings.model_fields[field].description
    assert text
    assert BANNED_PHRASES.search(re.sub(r"`[^`]*`", "", text)) is None


def test_docstrings_do_not_begin_in_the_middle() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}: {text.splitlines()[0]}"
        for path in SOURCES
        for name, text in docstrings(tree_of(path), path.stem)
        if re.match(rf"(?:{'|'.join(FIRST_WORDS)})\b", text)
    }
    assert sorted(found) == []
