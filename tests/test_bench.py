"""The benchmark, small: what it measures is true, and what it writes can be read."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.__main__ import measure
from bench.job import Result
from bench.results import Results, Run
from bench.scenarios import Scenario
from bench.servers import SERVERS
from bench.stream import Faults
from bench.svg import charts, plot
from bench.tables import tables
from tests.server import ROOT

TINY = Scenario("saturate", clients=10, publishers=2, window=2, warmup=0, seconds=0.2)
IDLE = Scenario("idle", clients=10)
STEADY = Scenario("steady", clients=10, publishers=2, rate=5)


def result(deliveries: int = 1000, faults: Faults = Faults()) -> Result:  # noqa: B008
    """A made-up one."""
    return Result(
        deliveries=deliveries, seconds=2, cpu=0.5, busy=0.1, connect_seconds=0.5, memory=90_000, grown_by=9,
        faults=faults, latencies=[0.001, 0.002],
    )  # fmt: skip


@pytest.mark.parametrize("name", ["chatserver", "chatserver-protobuf", "aiohttp"])
def test_a_server_is_measured_and_loses_nothing(name: str) -> None:
    (server,) = [each for each in SERVERS if each.name == name]
    found = measure(server, TINY)
    assert found.sound, found
    assert found.deliveries > 0
    assert found.latencies[0] > 0


def test_the_command_writes_what_it_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--only", "chatserver", "--scenarios", "idle"]
    run = subprocess.run([*command, "--output", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "table.md").read_text() == run.stdout
    assert "| chatserver |" in run.stdout
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["runs"][0]["server"] == "chatserver"
    assert found["versions"]["aiohttp"]
    ElementTree.parse(tmp_path / "plot.svg")


def test_figures_are_medians_and_ratios_are_to_the_first() -> None:
    ours = [Run("chatserver", TINY, result(deliveries)) for deliveries in (1000, 2000, 100_000)]
    shown = tables(Results([*ours, Run("other", TINY, result(500))]))
    assert "| chatserver | 250.00 | 1.00 | 100.00 | 1,000 | 1.0 | 2.0 | 25 | 10 |" in shown
    assert "| other | 1000.00 | 4.00 | 1.00 | 250 |" in shown.replace("1,000.00", "1000.00")


def test_a_server_that_loses_messages_gets_no_figures() -> None:
    runs = [Run("chatserver", TINY, result()), Run("other", TINY, result(faults=Faults(lost=3)))]
    assert "| other | doesn't count: 3 lost |" in tables(Results(runs))
    assert [name for name, _ in charts(Results(runs))[0].bars] == ["chatserver"]


def test_the_plot_is_xml_and_names_everybody() -> None:
    names = ["chatserver", "<other> & co"]
    runs = [Run(name, scenario, result()) for name in names for scenario in (TINY, STEADY, IDLE)]
    svg = ElementTree.fromstring(plot(charts(Results(runs))))
    words = [each.text for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert [words.count(name) for name in names] == [3, 3]
