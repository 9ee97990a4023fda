"""Words that a reader of entrep must not meet in messages, help, tables, pages and docs.

    python tests/words.py entrep_cli README.md docs

Of Python files all string literals with a blank in them count, docstrings of commands too; `--docstrings` adds the others.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

WORDS = re.compile(
    r"\b(mend\w*|swap tests?|parts?|share[sd]?|kept|told|seen|own|there|found|pace|thaw\w*|finish(?:ed|es)?|begun|minds|published weights)\b",
    re.IGNORECASE,
)
ALLOWED = re.compile(r"https?://\S+")  # an address is no sentence
TEXT = (".md", ".j2", ".toml")


def hits(path: Path, docstrings: bool = False) -> Iterator[tuple[int, str]]:
    """Line and excerpt of each word in what a user can see of a file."""
    content = path.read_text("utf-8")
    pieces = _strings(content, docstrings or "commands" in path.parts) if path.suffix == ".py" else enumerate(content.split("\n"), 1)
    for line, text in pieces:
        for match in WORDS.finditer(ALLOWED.sub(lambda m: " " * len(m[0]), text)):
            yield line, f"{match[0]}: ...{text[max(0, match.start() - 40) : match.end() + 30]!r}"


def _strings(content: str, docstrings: bool) -> Iterator[tuple[int, str]]:
    tree = ast.parse(content)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    skipped = set() if docstrings else {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and ast.get_docstring(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value and id(node) not in skipped:
            yield node.lineno, node.value


def files(place: Path) -> list[Path]:
    """What is searched of a file or folder."""
    return [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in (".py", *TEXT))


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--docstrings"]
    listed = [(path, *hit) for a in arguments for path in files(Path(a)) for hit in hits(path, "--docstrings" in sys.argv)]
    for path, line, text in listed:
        print(f"{path}:{line}: {text}")
    sys.exit(f"{len(listed)} words" if listed else 0)
