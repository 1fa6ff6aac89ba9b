"""Several "hosts" on one machine: each has its own network, processes, mounts, name and sshd.

Needs root, and the packages iproute2, openssh-server and pdsh. The hosts hang on one switch:

      node1 10.77.0.1     node2 10.77.0.2     ...      network, pid, mount, uts and ipc namespaces
           |                   |
      -----+-------------------+-----                  a bridge in a network namespace of its own

Files are shared, as on NFS. Only what was started here is ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_SSH_PORT = 2222
_NAMESPACES = ("--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--ipc")
NEEDED = ("ip", "unshare", "nsenter", "pdsh", "ssh", "ssh-keygen")


def missing() -> str | None:
    """Return why hosts cannot be made here, None where they can."""
    if os.geteuid():
        return "only root may make namespaces"
    absent = [name for name in NEEDED if not shutil.which(name)]
    if not Path("/usr/sbin/sshd").exists():
        absent.append("sshd")
    return f"not installed: {', '.join(absent)}" if absent else None


class Hosts:
    """The hosts node1, node2, ... A context.

    folder: gets keys, ssh_config and the logs of the sshds. disk: a folder that becomes a small
    disk of so many MiB, which all hosts see.
    """

    def __init__(self, folder: Path, count: int = 2, disk: tuple[Path, int] | None = None) -> None:
        self.folder = folder.resolve()
        self.numbers = range(1, count + 1)
        self._tag = f"a{os.getpid()}"  # of the names of namespaces, which are global
        self._holders: dict[int, subprocess.Popen[bytes]] = {}
        self._disk = disk

    def __enter__(self) -> Hosts:
        self.folder.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        self._write_files()
        try:
            if self._disk:
                where, mib = self._disk
                where.mkdir(parents=True, exist_ok=True)
                _call("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(where))
            self._connect()
            for number in self.numbers:
                self.start(number)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def ssh(self) -> dict[str, str]:
        """The variables with which pdsh reaches the hosts."""
        return {"PDSH_SSH_ARGS_APPEND": f"-F {self.folder / 'ssh_config'}"}

    def hostfile(self, *numbers: int) -> Path:
        """Write a hostfile of these hosts, with one rank on each, and return it."""
        path = self.folder / f"hostfile-{'-'.join(map(str, numbers))}"
        path.write_text("".join(f"node{number} slots=1\n" for number in numbers))
        return path

    def init(self, number: int) -> int:
        """Return the host's first process; whoever kills it kills the host."""
        children = Path(f"/proc/{self._holders[number].pid}/task").glob("*/children")
        return int(next(pid for file in children for pid in file.read_text().split()))

    def start(self, number: int) -> None:
        """Start a host, also one that was killed, and wait until its sshd answers."""
        inside = (
            f"hostname node{number}; mount --bind {self.folder}/hosts /etc/hosts; "
            "mount -t tmpfs tmpfs /dev/shm; "
            f"exec /usr/sbin/sshd -D -e -f {self.folder}/sshd{number}.conf"
        )
        with (self.folder / f"sshd{number}.log").open("ab") as log:
            self._holders[number] = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self._network(number), "unshare", *_NAMESPACES),
                    *("bash", "-c", inside),
                ],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for _ in range(100):
            time.sleep(0.1)
            try:
                asked = self.on(number, ["ssh", "-F", f"{self.folder}/ssh_config"])
                command = [*asked, f"node{number}", "true"]
                if not subprocess.run(command, capture_output=True, check=False).returncode:
                    return
            except StopIteration:
                continue
        raise RuntimeError(f"the sshd of node{number} does not answer; {log.name} says why")

    def kill(self, number: int) -> None:
        """Kill a host with all its processes; its address answers no more."""
        os.kill(self.init(number), signal.SIGKILL)
        self._holders.pop(number).wait()

    def is_up(self, number: int) -> bool:
        """Whether a host runs."""
        return number in self._holders and self._holders[number].poll() is None

    def link(self, number: int, up: bool) -> None:
        """Cut a host from the others, or connect it again."""
        state = "up" if up else "down"
        _call("ip", "-n", self._network(0), "link", "set", f"port{number}", state)

    def on(self, number: int, words: Sequence[str]) -> list[str]:
        """Return the words that run a command on a host."""
        return ["nsenter", "-t", str(self.init(number)), "-n", "-p", "-m", "-u", "-i", "--", *words]

    def popen(
        self, number: int, words: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host, in a session of its own."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self.on(number, words),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **self.ssh, **environment},
            )

    def host_of(self, pid: int) -> int | None:
        """Return the number of the host on which a process runs, None for other processes."""
        network = _network_of(pid)
        for number, holder in self._holders.items():
            if network is not None and _network_of(holder.pid) == network:
                return number
        return None

    def _network(self, number: int) -> str:
        """Return the name of the host's network namespace; 0: the switch's."""
        return f"{self._tag}-{number}"

    def _connect(self) -> None:
        switch = self._network(0)
        _call("ip", "netns", "add", switch)
        _call("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
        _call("ip", "-n", switch, "link", "set", "switch", "up")
        for number in self.numbers:
            host = self._network(number)
            _call("ip", "netns", "add", host)
            _call(
                *("ip", "link", "add", f"port{number}", "netns", switch, "type", "veth"),
                *("peer", "name", "eth0", "netns", host),
            )
            _call(*("ip", "-n", switch, "link", "set", f"port{number}", "master", "switch", "up"))
            _call("ip", "-n", host, "link", "set", "lo", "up")
            _call("ip", "-n", host, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            _call("ip", "-n", host, "link", "set", "eth0", "up")

    def _write_files(self) -> None:
        folder = self.folder
        if not (folder / "id").exists():
            _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "id"))
        shutil.copy(folder / "id.pub", folder / "authorized_keys")
        names = [f"10.77.0.{number} node{number}" for number in self.numbers]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        (folder / "ssh_config").write_text(
            f"Host node*\n  IdentityFile {folder}/id\n  Port {_SSH_PORT}\n"
            "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
            "  ConnectTimeout 5\n  ServerAliveInterval 5\n  ServerAliveCountMax 2\n"
        )
        for number in self.numbers:
            key = folder / f"hostkey{number}"
            if not key.exists():
                _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
            (folder / f"sshd{number}.conf").write_text(
                f"Port {_SSH_PORT}\nListenAddress 10.77.0.{number}\nHostKey {key}\n"
                f"PidFile {folder}/sshd{number}.pid\nAuthorizedKeysFile {folder}/authorized_keys\n"
                "PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\n"
                "UsePAM no\n"
            )

    def _end(self) -> None:
        for number in list(self._holders):
            try:
                self.kill(number)
            except (StopIteration, ProcessLookupError):
                self._holders.pop(number).kill()
        for number in (0, *self.numbers):
            subprocess.run(
                ["ip", "netns", "del", self._network(number)], capture_output=True, check=False
            )
        if self._disk:
            subprocess.run(["umount", "-l", str(self._disk[0])], capture_output=True, check=False)


def _network_of(pid: int) -> Path | None:
    """Return the name of a process's network namespace, None where it has gone."""
    try:
        return Path(f"/proc/{pid}/ns/net").readlink()
    except OSError:
        return None


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
