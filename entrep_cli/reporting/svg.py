"""Drawing in SVG, escaped: elements, axes and texts that follow the page's colours.

A chart is drawn on a surface of fixed units, made for a phone, and scales up with its place in a page. Colours
are classes and variables of `report.css`, so that light, dark and paper need no second drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from markupsafe import Markup, escape

from entrep_cli.console import visible

WIDTH = 360.0  # units: pixels on a phone


def element(name: str, *children: object, **attributes: object) -> Markup:
    """An SVG element; every attribute and text is escaped, and control characters are made visible.

    `_` in the name of an attribute stands for `-`, one at its end for nothing; attributes that are None are left out.

    >>> element("text", "a < b", x=1.5, class_="soft", text_anchor="end")
    Markup('<text x="1.5" class="soft" text-anchor="end">a &lt; b</text>')
    """
    given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    head = "".join(f' {key}="{escape(_spelt(value))}"' for key, value in given)
    return Markup(f"<{name}{head}>{''.join(escape(_spelt(child)) for child in children)}</{name}>")


def chart(name: str, title: str, description: str, height: float, children: Iterable[object], *, width: float = WIDTH, **more) -> Markup:
    """A whole drawing, with a title and a description for readers who do not see it.

    Args:
        name: different for every chart of a page.
        width, height: in units of the drawing.
    """
    ids = f"{name}-title", f"{name}-text"
    told = (element("title", title, id=ids[0]), element("desc", description, id=ids[1]))
    size = {"viewBox": f"0 0 {_spelt(width)} {_spelt(height)}", "width": width, "height": height}
    look = {"class_": "chart", "role": "img", **more}
    return element("svg", *told, *children, **size, **look, aria_labelledby=" ".join(ids))


def text(x: float, y: float, content: object, class_: str | None = None, anchor: str | None = None, **more: object) -> Markup:
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor, **more)


def label(x: float, y: float, name: str, n: int, class_: str | None = None, anchor: str | None = None, **more: object) -> Markup:
    """A name of at most `n` characters; a longer one is cut, and whole in its tooltip."""
    name = visible(name)
    if len(name) <= n:
        return text(x, y, name, class_, anchor, **more)
    return element("text", element("title", name), name[: n - 1] + "…", x=x, y=y, class_=class_, text_anchor=anchor, **more)


def line(x1: float, y1: float, x2: float, y2: float, class_: str = "axis", **more: object) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_, **more)


def rectangle(x: float, y: float, width: float, height: float, class_: str, *children: object, **more: object) -> Markup:
    return element("rect", *children, x=x, y=y, width=max(width, 0.0), height=max(height, 0.0), class_=class_, **more)


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """At most n + 1 round numbers between two, at steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _spelt(value: object) -> object:
    """Numbers short, as a drawing needs no more than a hundredth of a unit; texts without control characters."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return value if isinstance(value, Markup) else visible(value)
