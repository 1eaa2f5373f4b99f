"""A map as a picture, by Altair: .html that works offline, .png or .svg. The extra `map`."""

from collections import Counter
from pathlib import Path
from typing import Any

from e5core.formats.files import replacing
from e5core.integrations import extra
from e5core.maps.points import Map

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


def save(drawn: Map, path: Path, size: tuple[int, int] = SIZE) -> None:
    """Write a map; the suffix of the path says what kind of file.

    Raises ValueError for another suffix, OSError if the file cannot be written.
    """
    check_suffix(path)
    chart = draw(drawn, interactive=path.suffix == ".html", size=size)
    with replacing(path) as temporary:
        if path.suffix == ".html":
            chart.save(temporary, format="html", inline=True)
        else:
            chart.save(temporary, format=path.suffix[1:], scale_factor=PNG_SCALE)


def check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected {', '.join(SUFFIXES)}")


def draw(drawn: Map, interactive: bool, size: tuple[int, int] = SIZE) -> Any:
    """A map as an Altair chart; an interactive one can be zoomed and searched."""
    rows = [
        {
            "x": point.x,
            "y": point.y,
            "label": point.label,
            "group": point.group,
            "sentence": point.text,
            "translation": point.translation,
            "language": point.language,
            "unknown": f"{point.unknown:.0%} of its tokens are unknown" if point.lacking else "",
            "lacking": point.lacking,
            FIND: " ".join((point.text, point.translation, point.language)).lower(),
        }
        for point in drawn.points
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
    labels = base.mark_text(align="left", dx=7, fontSize=11).encode(text="label:N")
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
        labels = labels.encode(opacity=altair.condition(found, altair.value(1), altair.value(0.06)))
    layers = [points, labels] if any(point.label for point in drawn.points) else [points]
    title = altair.Title(drawn.title, subtitle=drawn.notes, anchor="start")
    chart = altair.layer(*layers, title=title).properties(width=size[0], height=size[1])
    return chart.configure_view(stroke=None).configure_legend(labelLimit=260)


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


def _tooltip(drawn: Map) -> list[Any]:
    """What hovering shows: the fields that say something in this map."""
    shown = [
        ("language", any(point.language for point in drawn.points)),
        ("sentence", any(point.text for point in drawn.points)),
        ("translation", any(point.translation for point in drawn.points)),
        ("group", any(point.group for point in drawn.points)),
        ("unknown", any(point.lacking for point in drawn.points)),
    ]
    return [altair.Tooltip(f"{name}:N") for name, says in shown if says]
