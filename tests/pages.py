"""A page as its tags, for tests."""

from __future__ import annotations

from html.parser import HTMLParser

_ALONE = ("meta", "img", "br", "input")


class Tags(HTMLParser):
    """Start tags with their attributes, and the elements that are still open; AssertionError where another one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in _ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag
