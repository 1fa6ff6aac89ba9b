"""Hosts on one machine: each has processes, a network, a name, and shared memory of its own, and an
sshd. They share the file system, as a cluster does. A host has one processor: the number of threads
with which a rank computes then does not depend on the machine, and so neither do its last digits.

    node1   node2   node3        each in its own network, process, mount, name and IPC namespace
      |       |       |          eth0, 10.77.0.1, .2, .3
      +-------+-------+  a bridge in a namespace of its own: a host that is gone is silent, and the
                         others keep their link

    with several_hosts(folder) as hosts:
        hosts[0].run(["hostname"])          # node1
        hosts[1].kill()                     # as if its power was cut: no packet leaves it any more
        hosts[1].boot()

Hosts have no way out: the tests' own process reaches them by `run` and `start` only. Several sets
of hosts may live at the same time. They end with the process that made them.

Needs root and Debian's iproute2, openssh-server, openssh-client, util-linux; for the launchers also
pdsh and openmpi-bin.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE, until

_PROGRAMS = {
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nsenter": "util-linux",
    "pdsh": "pdsh",
}
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_SSH_PORT = 2222


class Host:
    """One of the hosts. `number` counts from 1, `name` is nodeN, `address` is 10.77.0.N."""

    def __init__(self, number: int, folder: Path, namespace: str) -> None:
        self.number = number
        self.name = f"node{number}"
        self.address = f"10.77.0.{number}"
        self.folder = folder
        self.namespace = namespace
        processors = sorted(os.sched_getaffinity(0))
        self._processor = ["taskset", "-c", str(processors[(number - 1) % len(processors)])]
        self._holder: subprocess.Popen[bytes] | None = None
        self._init = 0

    def boot(self) -> None:
        """Start the host, and wait until its sshd answers. Also after `kill`."""
        assert not self.is_up, f"{self.name} runs already"
        sshd = f"exec {shutil.which('sshd', path=_PATH)} -D -e -f {self.folder}/{self.name}.sshd"
        setup = [
            f"hostname {self.name}",
            f"mount --bind {self.folder}/hosts /etc/hosts",
            "mount -t tmpfs tmpfs /dev/shm",
            sshd,
        ]
        apart = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--ipc"]
        ends_with_us = ["setpriv", "--pdeathsig", "KILL"]
        within = [
            *ends_with_us,
            *self._processor,
            "ip",
            "netns",
            "exec",
            self.namespace,
            "unshare",
            *apart,
        ]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._holder = subprocess.Popen(
                [*within, "sh", "-ec", "; ".join(setup)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PATH": _PATH},
            )
        holder = self._holder.pid
        self._init = until(lambda: next(iter(children(holder)), 0), said=self._explain, pause=0.05)
        self.restore_link()
        until(self._answers, said=self._explain, pause=0.05)

    def kill(self) -> None:
        """Cut the power: first the link, so that no socket says good-bye, then each process."""
        self.cut_link()
        self.shut_down()

    def shut_down(self) -> None:
        """SIGKILL all processes of the host, over a link that stays: connections are closed."""
        if self._holder is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        self._holder.wait(PATIENCE)
        self._holder = None

    @property
    def is_up(self) -> bool:
        return self._holder is not None and self._holder.poll() is None

    def cut_link(self) -> None:
        """Let no packet in or out. The host's processes run on."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def restore_link(self) -> None:
        _ip("-n", self.namespace, "link", "set", "eth0", "up")

    def words(self, command: Sequence[str]) -> list[str]:
        """The words that run a command on this host, from outside."""
        assert self.is_up, f"{self.name} does not run"
        inside = ["--net", "--pid", "--mount", "--uts", "--ipc"]
        enter = ["nsenter", "--target", str(self._init), *inside, "--"]
        return [*self._processor, *enter, *command]

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end. Its output is captured as text."""
        return subprocess.run(
            self.words(command),
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=self.environment(environment),
            stdin=subprocess.DEVNULL,
            **options,
        )

    def start(
        self, command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command on this host, in a session of its own. Its output is added to a file.

        The process that is returned stands outside, and ends as the command does. A signal to it
        does not reach the command: take `signal` for that.
        """
        with log.open("ab") as stream:
            return subprocess.Popen(
                self.words(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self.environment(environment),
            )

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The variables of a command: those of this process, and how ssh reaches other hosts."""
        own = {
            "PATH": _PATH,
            "PDSH_SSH_ARGS_APPEND": f"-F {self.folder}/ssh_config",
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_plm_rsh_args": f"-F {self.folder}/ssh_config",
        }
        return {**os.environ, **own, **(more or {})}

    def processes(self, pattern: str = "") -> dict[int, str]:
        """The processes of this host whose command line has the pattern, as seen from outside.

        By process id; without the host's own sshd and its sessions.
        """
        if not self.is_up:
            return {}
        own = _namespace(self._init)
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or _namespace(int(entry.name)) != own:
                continue
            line = command_line(int(entry.name))
            if pattern in line and line and not line.startswith(("sshd", "/usr/sbin/sshd")):
                found[int(entry.name)] = line
        return found

    def signal(self, number: int, pattern: str) -> list[int]:
        """Signal the processes whose command line has the pattern. Returns their ids outside."""
        pids = list(self.processes(pattern))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    def _answers(self) -> bool:
        command = ["ssh", "-F", f"{self.folder}/ssh_config", self.name, "true"]
        return self.run(command).returncode == 0

    def _explain(self) -> str:
        return f"{self.name} did not start: {(self.folder / f'{self.name}.log').read_text()}"


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def command_line(pid: int) -> str:
    """The words of a process, with a space between; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def several_hosts(folder: Path, count: int = 2) -> Iterator[list[Host]]:
    """Make hosts, and end them with all that runs there.

    folder: an empty one, for their keys, settings and logs.
    """
    require_hosts()
    folder.mkdir(parents=True, exist_ok=True)
    Path("/run/sshd").mkdir(parents=True, exist_ok=True)
    mark = f"addp-{os.getpid()}-{time.monotonic_ns() % 10**6}"
    switch = f"{mark}-0"
    hosts = [Host(number, folder, f"{mark}-{number}") for number in range(1, count + 1)]
    _write_settings(folder, hosts)
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in hosts:
            _connect(host, switch)
            host.boot()
        yield hosts
    finally:
        for host in hosts:
            host.shut_down()
        for namespace in (*(host.namespace for host in hosts), switch):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def require_hosts() -> None:
    """Fail the test where hosts cannot be made, with what is missing."""
    if os.geteuid() != 0:
        pytest.fail("hosts in network namespaces need root: run these tests as root")
    missing = {
        package
        for program, package in _PROGRAMS.items()
        if shutil.which(program, path=_PATH) is None
    }
    if missing:
        pytest.fail(f"missing on this machine: `apt-get install {' '.join(sorted(missing))}`")


def _connect(host: Host, switch: str) -> None:
    """Give a host its network: a cable to the switch."""
    port = f"port{host.number}"
    _ip("netns", "add", host.namespace)
    cable = ("link", "add", port, "netns", switch, "type", "veth", "peer", "name", "eth0")
    _ip(*cable, "netns", host.namespace)
    _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
    _ip("-n", host.namespace, "link", "set", "lo", "up")
    _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")


def _write_settings(folder: Path, hosts: Sequence[Host]) -> None:
    """Write the keys and settings of ssh, and /etc/hosts."""
    _keygen(folder / "id")
    (folder / "authorized_keys").write_bytes((folder / "id.pub").read_bytes())
    names = "".join(f"{host.address} {host.name}\n" for host in hosts)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    (folder / "hostfile").write_text("".join(f"{host.name} slots=1\n" for host in hosts))
    (folder / "ssh_config").write_text(
        f"Host node* 10.77.0.*\n  IdentityFile {folder}/id\n  Port {_SSH_PORT}\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    for host in hosts:
        _keygen(folder / f"{host.name}.key")
        (folder / f"{host.name}.sshd").write_text(
            f"Port {_SSH_PORT}\nListenAddress {host.address}\nHostKey {folder}/{host.name}.key\n"
            f"PidFile {folder}/{host.name}.pid\nAuthorizedKeysFile {folder}/authorized_keys\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\n"
            "UsePAM no\n"
        )


def _keygen(path: Path) -> None:
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def _ip(*words: str) -> None:
    done = subprocess.run(
        ["ip", *words],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": _PATH},
    )
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def _namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""
