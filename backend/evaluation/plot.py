"""Line charts on logarithmic axes, drawn with Pillow: enough for a benchmark, and no plotting library to install."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

COLOURS = ("#1f5fbf", "#d1495b", "#2a9d5c", "#e08e0b", "#7b4fb5", "#117f8c", "#8a5a2b", "#555555")
_WIDTH_PX, _HEIGHT_PX = 640, 460
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 80, 20, 46, 60


@dataclass(frozen=True)
class Chart:
    """One panel.

    Attributes:
        title, x_title, y_title: what it shows.
        lines: name to points (x, y), all above 0; others are left out.
    """

    title: str
    x_title: str
    y_title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def draw_charts(charts: Sequence[Chart]) -> PillowImage.Image:
    """Draw the panels, two in a row, and a legend under them; a name has one colour in all of them."""
    names = list(dict.fromkeys(name for chart in charts for name in chart.lines))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    rows, columns = math.ceil(len(charts) / 2), min(2, len(charts))
    legend_y = _HEIGHT_PX * rows
    picture = PillowImage.new("RGB", (_WIDTH_PX * columns, legend_y + 24 * math.ceil(len(names) / 4) + 16), "white")
    for index, chart in enumerate(charts):
        panel = PillowImage.new("RGB", (_WIDTH_PX, _HEIGHT_PX), "white")
        _draw_chart(ImageDraw.Draw(panel), chart, colours)
        picture.paste(panel, (index % 2 * _WIDTH_PX, index // 2 * _HEIGHT_PX))
    draw = ImageDraw.Draw(picture)
    column_px = picture.width // 4
    for index, name in enumerate(names):
        x, y = 20 + index % 4 * column_px, legend_y + 8 + 24 * (index // 4)
        draw.line((x, y + 9, x + 28, y + 9), colours[name], 4)
        draw.text((x + 36, y), name, "#222222", _font(15))
    return picture


def _draw_chart(draw: ImageDraw.ImageDraw, chart: Chart, colours: Mapping[str, str]) -> None:
    points = [point for line in chart.lines.values() for point in line if min(point) > 0]
    draw.text((_LEFT_PX, 12), chart.title, "#111111", _font(17))
    if not points:
        return
    x_axis = _Axis([x for x, _ in points], _LEFT_PX, _WIDTH_PX - _RIGHT_PX)
    y_axis = _Axis([y for _, y in points], _HEIGHT_PX - _BOTTOM_PX, _TOP_PX)
    for value in x_axis.ticks():
        x = x_axis.px(value)
        draw.line((x, _TOP_PX, x, _HEIGHT_PX - _BOTTOM_PX), "#e4e4e4")
        draw.text((x, _HEIGHT_PX - _BOTTOM_PX + 6), f"{value:g}", "#444444", _font(13), anchor="ma")
    for value in y_axis.ticks():
        y = y_axis.px(value)
        draw.line((_LEFT_PX, y, _WIDTH_PX - _RIGHT_PX, y), "#e4e4e4")
        draw.text((_LEFT_PX - 6, y), f"{value:g}", "#444444", _font(13), anchor="rm")
    draw.text(((_LEFT_PX + _WIDTH_PX) / 2, _HEIGHT_PX - 26), chart.x_title, "#222222", _font(14), anchor="ma")
    draw.text((8, _TOP_PX - 18), chart.y_title, "#222222", _font(13))
    for name, line in chart.lines.items():
        path = [(x_axis.px(x), y_axis.px(y)) for x, y in sorted(line) if min(x, y) > 0]
        if len(path) > 1:
            draw.line(path, colours[name], 3, joint="curve")
        for x, y in path:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), colours[name])


class _Axis:
    """Logarithms of values laid out between two pixels."""

    def __init__(self, values: Sequence[float], start_px: float, end_px: float) -> None:
        low, high = math.log10(min(values)), math.log10(max(values))
        spare = max(0.04 * (high - low), 0.05)
        self._low, self._high = low - spare, high + spare
        self._start_px, self._end_px = start_px, end_px

    def px(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start_px + share * (self._end_px - self._start_px)

    def ticks(self) -> list[float]:
        factors = (1.0,) if self._high - self._low > 3 else (1.0, 2.0, 5.0)
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        return [value for value in ticks if self._low <= math.log10(value) <= self._high]


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
