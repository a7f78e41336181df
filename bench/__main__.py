"""Measures our server beside the peers that are installed: docs/performance.md.

python -m bench --quick
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.job import Result, dump, result_from
from bench.machine import cores, versions
from bench.process import LOAD_CORES, environment
from bench.results import Results, Run
from bench.scenarios import FULL, QUICK, Scenario
from bench.servers import SERVERS, Server
from bench.svg import charts, plot
from bench.tables import tables

GENERATOR_SECONDS = 120
"""Far more than any scenario takes."""


def main() -> int:
    """Exit status 1 if something was lost, doubled, reordered or corrupted, or a server couldn't be measured."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that servers are ended, too
    chosen = [server for server in SERVERS if server.name in given.only]
    missing = {server.name: how for server in chosen if (how := server.missing())}
    servers = [server for server in chosen if server.name not in missing]
    scenarios = [each for each in (QUICK if given.quick else FULL) if each.group in given.scenarios]
    results, failed = _measure(servers, scenarios, given.rounds)
    absent = "; ".join(f"{name} ({how})" for name, how in missing.items())
    report = _report(results, servers, f"Not installed: {absent}." if absent else "")
    print(report)
    _write(given.output, results, report, servers)
    return int(failed or not all(run.result.sound for run in results.runs))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--rounds", type=int, help="of which the medians are taken; 3, or 1 if it is to be quick")
    parser.add_argument("--only", type=_list, help=", ".join(server.name for server in SERVERS))
    parser.add_argument("--scenarios", type=_list, help=", ".join(dict.fromkeys(each.group for each in FULL)))
    parser.add_argument("--output", type=Path, default=Path("bench-results"), help="folder; default: %(default)s")
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.quick else 3)
    given.only = given.only or [server.name for server in SERVERS if server.quick or not given.quick]
    given.scenarios = given.scenarios or [each.group for each in (QUICK if given.quick else FULL)]
    _know(parser, given.only, [server.name for server in SERVERS])
    _know(parser, given.scenarios, [each.group for each in (QUICK if given.quick else FULL)])
    return given


def _list(text: str) -> list[str]:
    return text.split(",")


def _know(parser: argparse.ArgumentParser, named: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in named if name not in known]:
        parser.error(f"there is no {', '.join(unknown)}")


def _measure(servers: Sequence[Server], scenarios: Sequence[Scenario], rounds: int) -> tuple[Results, bool]:
    """Interleaved: what goes on beside it on the machine then hits all alike. The other one: whether one failed."""
    runs: list[Run] = []
    failed = False
    for number in range(rounds):
        for scenario in scenarios:
            if scenario.once and number:
                continue
            for server in [each for each in servers if not scenario.ours or each.name == "chatserver"]:
                print(f"round {number + 1}/{rounds}: {scenario.name}: {server.name}", file=sys.stderr)
                try:
                    runs.append(Run(server.name, scenario, measure(server, scenario)))
                except (RuntimeError, subprocess.SubprocessError) as error:
                    print(f"{server.name}: {error}", file=sys.stderr)
                    failed = True
    return Results(runs), failed


def measure(server: Server, scenario: Scenario) -> Result:
    """One run of a fresh server. Raises `RuntimeError` or `SubprocessError`."""
    with tempfile.TemporaryDirectory() as folder, server.running(Path(folder)) as (port, pid):
        run = subprocess.run(
            [sys.executable, "-m", "bench.generator"],
            input=dump(scenario.job(port, pid, server.dialect)),
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=GENERATOR_SECONDS,
            preexec_fn=lambda: os.sched_setaffinity(0, LOAD_CORES),
        )
    return result_from(run.stdout)


def _report(results: Results, servers: Sequence[Server], absent: str) -> str:
    known = ", ".join(f"{name} {version}" for name, version in versions(servers).items())
    return "\n\n".join(filter(None, [tables(results), f"Versions: {known}.", cores(), absent]))


def _write(folder: Path, results: Results, report: str, servers: Sequence[Server]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(report + "\n")
    (folder / "plot.svg").write_text(plot(charts(results)))
    runs = [asdict(run) for run in results.runs]
    (folder / "results.json").write_text(json.dumps({"versions": versions(servers), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
