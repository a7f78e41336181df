"""What was measured, and its medians."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench.job import Result
from bench.scenarios import Scenario
from bench.stream import Faults


@dataclass(frozen=True)
class Run:
    """One server under one load, once."""

    server: str
    scenario: Scenario
    result: Result


Figure = Callable[[Result], float]


def deliveries_per_second(result: Result) -> float:
    """Of all clients together."""
    return result.deliveries / result.seconds


def cpu_microseconds(result: Result) -> float:
    """The server's, for each delivery."""
    return 1e6 * result.cpu / max(1, result.deliveries)


def memory_per_client(result: Result) -> float:
    """Bytes."""
    return result.memory / result.grown_by


def connects_per_second(result: Result) -> float:
    """While they connected."""
    return result.grown_by / result.connect_seconds


def server_share(result: Result) -> float:
    """Of a core, in percent."""
    return 100 * result.cpu / result.seconds


def generator_share(result: Result) -> float:
    """Of its core, in percent."""
    return 100 * result.busy


def p50_ms(result: Result) -> float:
    """From saying to hearing, milliseconds."""
    return 1000 * result.latencies[0] if result.latencies else 0


def p99_ms(result: Result) -> float:
    """From saying to hearing, milliseconds."""
    return 1000 * result.latencies[1] if result.latencies else 0


class Results:
    """All runs."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs

    def servers(self) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(run.server for run in self.runs))

    def scenarios(self, group: str) -> list[Scenario]:
        """Those of the group that were measured."""
        return list(dict.fromkeys(run.scenario for run in self.runs if run.scenario.group == group))

    def of(self, server: str, scenario: Scenario) -> list[Result]:
        """One for each round."""
        return [run.result for run in self.runs if (run.server, run.scenario) == (server, scenario)]

    def median(self, server: str, scenario: Scenario, figure: Figure) -> float | None:
        """None if it wasn't measured, or something went wrong in one of the rounds."""
        found = self.of(server, scenario)
        if not found or not all(result.sound for result in found):
            return None
        return median(map(figure, found))

    def spread(self, server: str, scenario: Scenario, figure: Figure) -> float:
        """The highest of all rounds by the lowest."""
        values = [figure(result) for result in self.of(server, scenario)]
        return max(values) / (min(values) or 1)

    def trouble(self, server: str, scenario: Scenario) -> str:
        """What went wrong in all rounds together; empty if nothing did."""
        found = self.of(server, scenario)
        faults = sum((result.faults for result in found), Faults())
        counts = {**faults._asdict(), "connections dropped": sum(result.dropped for result in found)}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
