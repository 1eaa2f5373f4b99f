"""A map as a picture, by Altair: .html that works offline, .png or .svg. The extra `map`."""

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from e5core.formats.files import replacing
from e5core.integrations import extra
from e5core.maps.labels import FONT_SIZE, SIDES, choose_sides
from e5core.maps.points import Map, Point

with extra("map", "altair", "vl_convert"):
    import altair
    import vl_convert  # noqa: F401  Altair writes all three kinds with it

SUFFIXES = (".html", ".png", ".svg")
SIZE = (860, 600)
PNG_SCALE = 2
# Pixels between the outermost points and the frame, which cuts names off in a page.
PADDING = {"x": 70, "y": 30}
# A legend can be read with so many colours. Groups beyond get a grey that is none of them.
COLOURS = 20
GREY = "#dddddd"
FIND = "find"
# The page of an interactive map, which fills the window down to the field that finds.
STYLE = """<style>
  html, body { height: 100%; margin: 0; font-family: sans-serif; }
  body #vis.vega-embed { position: absolute; inset: 8px; width: auto; flex-direction: column; }
  body #vis .chart-wrapper { flex: 1; min-height: 0; }
  body #vis.vega-embed details { position: absolute; top: 0; right: 0; }
  body #vis .vega-bindings { padding: 4px 14px; }
</style>"""


class _InScript(json.JSONEncoder):
    """JSON as it can stand in a page's script, which a text with "</script>" would end."""

    def encode(self, o: Any) -> str:
        return super().encode(o).replace("<", "\\u003c")


def save(drawn: Map, path: Path, size: tuple[int, int] = SIZE) -> None:
    """Write a map; the suffix of the path says what kind of file.

    Raises ValueError for another suffix, OSError if the file cannot be written.
    """
    check_suffix(path)
    chart = draw(drawn, interactive=path.suffix == ".html", size=size)
    with replacing(path) as temporary:
        if path.suffix == ".html":
            page = chart.to_html(inline=True, json_kwds={"cls": _InScript})
            head = f"<head>\n  <title>{escape(drawn.title)}</title>\n{STYLE}"
            temporary.write_text(page.replace("<head>", head, 1), encoding="utf-8")
        else:
            chart.save(temporary, format=path.suffix[1:], scale_factor=PNG_SCALE)


def check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected {', '.join(SUFFIXES)}")


def draw(drawn: Map, interactive: bool, size: tuple[int, int] = SIZE) -> Any:
    """A map as an Altair chart; an interactive one can be zoomed and searched."""
    sides = _sides(drawn.points, size)
    rows = [
        {
            "x": point.x,
            "y": point.y,
            "label": point.label,
            "group": point.group,
            "sentence": point.text,
            "translation": point.translation,
            "language": _language(point),
            "lacking": point.lacking,
            FIND: " ".join((point.text, point.translation, point.language)).lower(),
            "side": side,
        }
        for point, side in zip(drawn.points, sides, strict=True)
    ]
    base = altair.Chart(altair.Data(values=rows)).encode(
        x=_axis("x", drawn.shares[0]), y=_axis("y", drawn.shares[1])
    )
    points = base.mark_point(filled=True, size=70, opacity=0.9).encode(
        color=_colour(drawn),
        shape=altair.Shape(
            "lacking:N", scale=altair.Scale(domain=[False, True], range=["circle", "cross"])
        ).legend(None),
        tooltip=_tooltip(drawn),
    )
    labels = [
        base.transform_filter(f"datum.side == {side}")
        .mark_text(fontSize=FONT_SIZE, **SIDES[side]._asdict())
        .encode(text="label:N")
        for side in sorted({s for s, point in zip(sides, drawn.points, strict=True) if point.label})
    ]
    if interactive:
        typed = altair.param(
            name="typed",
            value="",
            bind=altair.binding(input="search", placeholder="a sentence", name="Find "),
        )
        found = f"!typed || indexof(datum.{FIND}, lower(typed)) >= 0"
        points = points.encode(
            opacity=altair.condition(found, altair.value(0.9), altair.value(0.06))
        ).add_params(typed, altair.selection_interval(bind="scales"))
        bright = altair.condition(found, altair.value(1), altair.value(0.06))
        labels = [label.encode(opacity=bright) for label in labels]
    title = altair.Title(drawn.title, subtitle=drawn.notes, anchor="start")
    chart = altair.layer(points, *labels, title=title)
    if interactive:
        fitted = altair.AutoSizeParams(type="fit", contains="padding", resize=True)
        chart = chart.properties(width="container", height="container", autosize=fitted)
    else:
        chart = chart.properties(width=size[0], height=size[1])
    return chart.configure_view(stroke=None).configure_legend(labelLimit=260)


def _sides(points: Sequence[Point], size: tuple[int, int]) -> list[int]:
    """On which side each point's label stands, by where the axes will put the points."""
    places = np.array([(point.x, -point.y) for point in points])
    padding = np.array([PADDING["x"], PADDING["y"]])
    low, high = places.min(axis=0), places.max(axis=0)
    share = (places - low) / np.maximum(high - low, np.finfo(np.float64).tiny)
    pixels = padding + share * (np.array(size) - 2 * padding)
    return choose_sides(pixels, [point.label for point in points])


def _axis(name: str, share: float) -> Any:
    kind = altair.X if name == "x" else altair.Y
    return kind(
        f"{name}:Q",
        title=f"{share:.0%} of the variance",
        axis=altair.Axis(labels=False, ticks=False, grid=False),
        scale=altair.Scale(zero=False, nice=False, padding=PADDING[name]),
    )


def _colour(drawn: Map) -> Any:
    """A colour for each group, or for the largest ones if there are more than colours."""
    counts = Counter(point.group for point in drawn.points)
    if list(counts) == [""]:
        return altair.value("#4c78a8")
    largest = {group for group, _ in counts.most_common(COLOURS)}
    groups = [group for group in counts if group in largest]
    others = len(counts) - len(groups)
    title = f"{drawn.legend} ({others} others are grey)" if others else drawn.legend
    colour = altair.Color(
        "group:N",
        title=title,
        scale=altair.Scale(
            domain=groups, scheme="tableau10" if len(groups) <= COLOURS // 2 else "tableau20"
        ),
        legend=altair.Legend(symbolLimit=COLOURS),
    )
    if not others:
        return colour
    has_one = altair.FieldOneOfPredicate("group", oneOf=groups)
    return altair.condition(has_one, colour, altair.value(GREY))


def _language(point: Point) -> str:
    if not point.lacking:
        return point.language
    return f"{point.language}, {point.unknown:.0%} of whose tokens are unknown"


def _tooltip(drawn: Map) -> list[Any]:
    """What hovering shows: the fields that say something in this map."""
    shown = [
        ("language", any(point.language for point in drawn.points)),
        ("sentence", any(point.text for point in drawn.points)),
        ("translation", any(point.translation for point in drawn.points)),
        ("group", any(point.group for point in drawn.points)),
    ]
    return [altair.Tooltip(f"{name}:N") for name, says in shown if says]
