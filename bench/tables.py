"""Results as tables of Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from bench.results import (
    Figure,
    Results,
    connects_per_second,
    cpu_microseconds,
    deliveries_per_second,
    generator_share,
    memory_per_client,
    p50_ms,
    p99_ms,
    server_share,
)
from bench.scenarios import CURVE_DELIVERIES, Scenario


class Column(NamedTuple):
    """A figure, and how many digits after the point are shown."""

    heading: str
    figure: Figure
    digits: int = 0


_CPU = Column("CPU µs", cpu_microseconds, 2)
_MEMORY = Column("bytes a client", memory_per_client)
_LATENCIES = [Column("p50 ms", p50_ms, 1), Column("p99 ms", p99_ms, 1)]
_SHARES = [Column("server busy %", server_share), Column("generator busy %", generator_share)]

_DELIVERIES = [Column("deliveries/s", deliveries_per_second), *_LATENCIES, *_SHARES]

_TABLES: dict[str, tuple[Column, list[Column], str]] = {
    # What is compared, what else is shown, and how it is headed.
    "saturate": (
        _CPU,
        _DELIVERIES,
        "Saturate: {0.clients} clients, {0.publishers} publishers, {0.window} messages each",
    ),
    "steady": (_CPU, _DELIVERIES, "Steady: {0.clients} clients, {0.rate} messages a second"),
    "idle": (_MEMORY, [Column("connects/s", connects_per_second)], "Idle: {0.clients} clients"),
    "rooms": (_CPU, _DELIVERIES, "Rooms: {0.rooms} of them, {0.clients} clients, {0.rate} messages a second"),
}


def tables(results: Results) -> str:
    """One for each group of scenarios."""
    blocks = [_table(results, scenario, *_TABLES[group]) for group in _TABLES for scenario in results.scenarios(group)]
    curve = results.scenarios("curve")
    return "\n\n".join([*blocks, *([_curve(results, curve)] if curve else [])])


def _table(results: Results, scenario: Scenario, main: Column, others: list[Column], title: str) -> str:
    servers = [server for server in results.servers() if results.of(server, scenario)]
    base = results.median(servers[0], scenario, main.figure)
    headings = ["server", main.heading, f"× {servers[0]}", "max/min", *(column.heading for column in others)]
    rows = []
    for server in servers:
        value = results.median(server, scenario, main.figure)
        if value is None:
            rows.append([server, f"doesn't count: {results.trouble(server, scenario)}"])
            continue
        ratio = f"{value / base:.2f}" if base else ""
        spread = f"{results.spread(server, scenario, main.figure):.2f}"
        rows.append([server, _cell(value, main), ratio, spread, *_cells(results, server, scenario, others)])
    return f"### {title.format(scenario)}\n\n{_markdown(headings, rows)}"


def _curve(results: Results, scenarios: Sequence[Scenario]) -> str:
    idle = [_MEMORY, Column("idle: server busy %", server_share, 1)]
    busy = [_CPU, *_LATENCIES]
    rows = []
    for server in results.servers():
        for count in dict.fromkeys(scenario.clients for scenario in scenarios):
            cells = [
                cell
                for scenario in scenarios
                if scenario.clients == count
                for cell in _cells(results, server, scenario, busy if scenario.publishers else idle)
            ]
            rows.append([server, f"{count:,}", *cells])
    headings = ["server", "clients", *(column.heading for column in [*idle, *busy])]
    return f"### Curve: idle, and with {CURVE_DELIVERIES:,} deliveries a second\n\n{_markdown(headings, rows)}"


def _cells(results: Results, server: str, scenario: Scenario, columns: Sequence[Column]) -> list[str]:
    medians = [(results.median(server, scenario, column.figure), column) for column in columns]
    return ["doesn't count" if value is None else _cell(value, column) for value, column in medians]


def _cell(value: float, column: Column) -> str:
    return f"{value:,.{column.digits}f}"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
