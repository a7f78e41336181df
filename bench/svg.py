"""Bar charts as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.results import Figure, Results, cpu_microseconds, deliveries_per_second, memory_per_client

WIDTH = 760
_NAMES = 190
_VALUES = 90
_BAR = 20
_ROW = 28
_TITLE = 46
_MARGIN = 16

_STYLE = "font-family: system-ui, 'DejaVu Sans', sans-serif; font-size: 13px"
_PAPER, _INK, _GREY, _OURS, _THEIRS = "#ffffff", "#1f2328", "#59636e", "#0969da", "#9aa4af"


@dataclass(frozen=True)
class Chart:
    """Bars from zero on, on a linear scale."""

    title: str
    note: str
    bars: Sequence[tuple[str, float]]
    digits: int = 0


_CHARTS: list[tuple[str, str, str, Figure, int]] = [
    ("saturate", "Deliveries a second", "as many as there can be; more is better", deliveries_per_second, 0),
    ("steady", "Processor time a delivery, µs", "at a steady rate; less is better", cpu_microseconds, 2),
    ("idle", "Memory an idle client, bytes", "without the kernel's; less is better", memory_per_client, 0),
]


def charts(results: Results) -> list[Chart]:
    """One for each scenario that was measured."""
    return [
        Chart(
            title,
            note,
            [(server, value) for server in results.servers() if (value := results.median(server, scenario, figure))],
            digits,
        )
        for group, title, note, figure, digits in _CHARTS
        for scenario in results.scenarios(group)
    ]


def plot(charts: Sequence[Chart]) -> str:
    """One picture of all of them, on a background of its own: it is put on light pages and on dark ones."""
    top = _MARGIN
    parts = []
    for chart in charts:
        parts += _drawn(chart, top)
        top += _TITLE + _ROW * len(chart.bars) + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}"'
            f' style="{_STYLE}">',
            f'<rect width="{WIDTH}" height="{top}" rx="6" fill="{_PAPER}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _drawn(chart: Chart, top: int) -> list[str]:
    parts = [
        f'<text x="{_MARGIN}" y="{top + 20}" fill="{_INK}" font-size="15" font-weight="600">{escape(chart.title)}'
        f'<tspan dx="8" fill="{_GREY}" font-size="12" font-weight="400">{escape(chart.note)}</tspan></text>'
    ]
    longest = max((value for _, value in chart.bars), default=1)
    for row, (name, value) in enumerate(chart.bars):
        y = top + _TITLE - 10 + row * _ROW
        length = max(1.0, (WIDTH - _NAMES - _VALUES - _MARGIN) * value / longest)
        colour = _OURS if name.startswith("chatserver") else _THEIRS
        parts += [
            f'<text x="{_NAMES - 10}" y="{y + 15}" fill="{_INK}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_NAMES}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>',
            f'<text x="{_NAMES + length + 8:.1f}" y="{y + 15}" fill="{_INK}">{value:,.{chart.digits}f}</text>',
        ]
    return parts
