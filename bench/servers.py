"""What is measured: our server, and the peers that are installed."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from bench.frames import BINARY
from bench.job import Dialect
from bench.process import ROOT, started
from bench.stream import BODY_BYTES
from chatserver.protocol import protobuf, wire

_PEERS = ROOT / "bench" / "peers"
SIMPLE = Dialect()
_JSON = Dialect(
    path="/connection/websocket",
    hello='{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"lobby"}}',
    ready='"subscribe":{',
    say='{"id":9,"publish":{"channel":"lobby","data":{"body":"%s"}}}',
)


def _protobuf() -> Dialect:
    text = "%".ljust(BODY_BYTES, "s")
    said = wire.PublishRequest("lobby", wire.raw(b'{"body":"%s"}' % text.encode()))
    hello = [
        wire.Command(id=1, connect=wire.ConnectRequest()),
        wire.Command(id=2, subscribe=wire.SubscribeRequest("lobby")),
    ]
    return Dialect(
        path="/connection/websocket?format=protobuf",
        hello="".join(map(_delimited, hello)),
        ready="\x08\x02\x32",
        say=_delimited(wire.Command(id=9, publish=said)).replace(text, "%s"),
        opcode=BINARY,
    )


def _delimited(command: wire.Command) -> str:
    return protobuf.delimited(command).decode("latin-1")


@dataclass(frozen=True)
class Server:
    """How one is started, and spoken with. It listens where PORT says."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    dialect: Dialect = SIMPLE
    packages: tuple[str, ...] = ()
    """Of Python, that it needs and whose versions matter."""
    quick: bool = True
    """Whether the quick run has it."""

    @property
    def ours(self) -> bool:
        """Whether it is a chatserver."""
        return self.name.startswith("chatserver")

    @contextmanager
    def running(self, folder: Path) -> Iterator[tuple[int, int]]:
        """Its port and process, in a working directory that is `folder`."""
        with started(self.command, folder, {**self.env, "NODE_PATH": _node_path()}) as found:
            yield found

    def missing(self) -> str:
        """How to install what isn't; empty if it is all there."""
        if self.command[0] == "node" and not _has_ws():
            return "npm install ws"
        absent = [name for name in self.packages if not importlib.util.find_spec(name)]
        return f"pip install {' '.join(absent)}" if absent else ""

    def versions(self) -> dict[str, str]:
        """Of what it needs."""
        if self.command[0] == "node":
            return {"node": _node("process.version"), "ws": _node("require('ws/package.json').version")}
        return {name: version(name) for name in self.packages}


def _ours(suffix: str = "", dialect: Dialect = SIMPLE, quick: bool = True, **env: str) -> Server:
    base = {
        "STORE_URL": "memory://",
        "RETENTION_COUNT": "1000",
        "LOG_LEVEL": "error",
        # Peers tell nobody who comes and goes.
        "FEATURES": "limits,http,api,centrifuge",
    }
    return Server("chatserver" + suffix, (sys.executable, "-m", "chatserver"), base | env, dialect, ("aiohttp",), quick)


def _peer(name: str, script: str, *packages: str) -> Server:
    return Server(name, (sys.executable, str(_PEERS / script)), packages=packages)


SERVERS = [
    _ours(),
    _ours("-presence", FEATURES="presence,limits,http,api,centrifuge"),
    _ours("-centrifuge", _JSON),
    _ours("-protobuf", _protobuf(), quick=False),
    _ours("-sqlite", quick=False, STORE_URL="sqlite:///chat.db"),
    _peer("aiohttp", "naive_aiohttp.py", "aiohttp"),
    _peer("websockets", "websockets_broadcast.py", "websockets"),
    _peer("fastapi", "fastapi_manager.py", "fastapi", "uvicorn"),
    Server("node-ws", ("node", str(_PEERS / "node_ws.js"))),
]


def _node_path() -> str:
    """Where node finds packages: NODE_PATH, the current folder, what is installed globally."""
    places = [os.environ.get("NODE_PATH", ""), str(Path.cwd() / "node_modules")]
    if shutil.which("npm"):
        places.append(subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=False).stdout.strip())
    return os.pathsep.join(filter(None, places))


def _node(expression: str) -> str:
    env = os.environ | {"NODE_PATH": _node_path()}
    run = subprocess.run(["node", "-p", expression], env=env, capture_output=True, text=True, check=False)
    return run.stdout.strip()


def _has_ws() -> bool:
    return bool(shutil.which("node")) and bool(_node("require('ws/package.json').version"))
