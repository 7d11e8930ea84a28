"""Ray nodes that are processes of this machine: for a demo, and for tests that kill some."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Self

from featurestore.disk.threads import starting
from featurestore.errors import InputError, UsageError

HOST = "127.0.0.2"
"""On 127.0.0.1 Ray 2.5x hung where the machine's name leads elsewhere."""
STARTED = "Ray runtime started"
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}
"""Ray asks for a token where this account has one, of some nodes and not of others."""
STORE_BYTES = 80_000_000
"""Of memory for objects, which items do not use; less is refused."""


class LocalNodes:
    """A cluster of nodes, which end with the block."""

    def __init__(self, n: int, cores: int = 1) -> None:
        """The first node is the head, which is not to be killed.

        cores : of each node, as the cluster counts them.
        """
        self._program = Path(sys.executable).with_name("ray")
        if not self._program.exists():
            raise UsageError(
                "Ray is not installed: pip install 'biomass-tokens[ray]' in this environment"
            )
        self._n = n
        self._cores = cores
        self._nodes: list[subprocess.Popen] = []

    def __enter__(self) -> Self:
        # its sockets' paths must be short
        self._folder = TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
        self._port = _free_port()
        self._before = {name: os.environ.get(name) for name in NO_TOKEN}
        os.environ |= NO_TOKEN
        try:
            head = ["--head", f"--port={self._port}", f"--temp-dir={self._folder.name}"]
            self._start([*head, "--include-dashboard=false", "--disable-usage-stats"])
            for _ in range(self._n - 1):
                self._start([f"--address={HOST}:{self._port}"])
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def engine(self) -> str:
        """As `--engine` takes it."""
        return f"ray://{HOST}:{self._port}"

    def kill(self, place: int) -> None:
        """SIGKILL a node and all its processes."""
        node = self._nodes[place]
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def __exit__(self, *_: object) -> None:
        for place in reversed(range(len(self._nodes))):
            self.kill(place)
        self._folder.cleanup()
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

    def _start(self, options: list[str]) -> None:
        command = [
            *(str(self._program), "start", "--block", f"--num-cpus={self._cores}", "--num-gpus=0"),
            *(f"--node-ip-address={HOST}", f"--object-store-memory={STORE_BYTES}", *options),
        ]
        with starting():
            node = subprocess.Popen(
                command,
                process_group=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self._nodes.append(node)
        heard = []
        for line in node.stdout:
            heard.append(line)
            if STARTED in line:
                Thread(target=_read_on, args=(node,), daemon=True).start()
                return
        raise InputError(f"a Ray node did not start:\n{''.join(heard[-20:])}")


def _free_port() -> int:
    """One that neither the system nor Ray gives to others before the head has it."""
    first = 20_000 + os.getpid() % 10_000
    for port in range(first, first + 100):
        with socket.socket() as free, suppress(OSError):
            free.bind((HOST, port))
            return port
    raise InputError(f"{HOST}: no port from {first} to {first + 99} is free; try again")


def _read_on(node: subprocess.Popen) -> None:
    """What a node says later is lost; nobody reading would stop it."""
    with node.stdout as lines:
        for _ in lines:
            pass
