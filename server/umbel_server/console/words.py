"""Numbers, times and amounts as people read them; each is a filter of the templates."""

from __future__ import annotations

import datetime
import math

from markupsafe import Markup

NOTHING = "\N{EN DASH}"
_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SIZES = ("B", "KB", "MB", "GB", "TB", "PB")


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with separators of thousands: ``12,345``; a dash for none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.{digits}f}"


def figures(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits that count: ``0.0123``, ``1,240``."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{min(places, 12)}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as percent: ``12.3 %``."""
    return (
        NOTHING
        if value is None or not math.isfinite(value)
        else f"{value * 100:,.{digits}f}\N{NO-BREAK SPACE}%"
    )


def size(value: float | None) -> str:
    """Return an amount of bytes: ``1.2 MB``, of a thousand and not of 1,024."""
    if value is None or not math.isfinite(value):
        return NOTHING
    place = 0
    while abs(value) >= 999.5 and place < len(_SIZES) - 1:
        value, place = value / 1000, place + 1
    digits = 0 if place == 0 or abs(value) >= 99.5 else 1
    return f"{value:,.{digits}f}\N{NO-BREAK SPACE}{_SIZES[place]}"


def duration(seconds: float | None) -> str:
    """Return a length of time in its two largest units: ``3 d 4 h``, ``1.2 s``, ``340 ms``, ``80 µs``."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    space = "\N{NO-BREAK SPACE}"
    if abs(seconds) < 60:
        for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
            told = seconds * factor
            if 0.9995 <= abs(told) < 1:
                told = round(told)  # Three figures would make it a thousand of the next unit.
            if abs(told) >= 1 or unit == "µs":
                return f"{figures(told, 2 if unit == 's' else 3)}{space}{unit}"
    sign, left = "-" if seconds < 0 else "", round(abs(seconds))
    parts = []
    for length, unit in _AGES:
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{space}{unit}")
    return sign + " ".join(parts[:2])


def iso(unix_s: float | None) -> str:
    """Return a moment as ISO 8601 has it, UTC, to a second; a dash for none or one that no calendar has."""
    if unix_s is None:
        return NOTHING
    try:
        when = datetime.datetime.fromtimestamp(unix_s, datetime.UTC)
    except (OverflowError, OSError, ValueError):
        return NOTHING
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")


def relative(unix_s: float, now_s: float) -> str:
    """Return how far a moment is from now: ``12 s ago``, ``in 3 d``."""
    away = unix_s - now_s
    if abs(away) < 1:
        return "now"
    length, unit = next(((size, unit) for size, unit in _AGES if abs(away) >= size), (1, "s"))
    words = f"{round(abs(away) // length):,}\N{NO-BREAK SPACE}{unit}"
    return f"in {words}" if away > 0 else f"{words} ago"


def when(unix_s: float | None, now_s: float) -> Markup:
    """Return a moment as HTML: relative words, and on them the moment itself."""
    text = iso(unix_s)
    if unix_s is None or text == NOTHING:
        return Markup('<span class="missing">{}</span>').format("never" if unix_s is None else NOTHING)
    # Of figures and fixed words alone: nothing in it is to be escaped.
    return Markup(f'<time datetime="{text}" title="{text}">{relative(unix_s, now_s)}</time>')  # noqa: S704
