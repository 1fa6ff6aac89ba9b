"""The machines of a run. A hostfile is read strictly: DeepSpeed hands a host's name to ssh as it
stands, and starts on this machine alone where there is no such file."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from model.documents import MIB, read_file
from model.errors import ADDPError, ConfigError

_LINE = re.compile(r"(\S+)\s+slots=(\S+)")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_SECRET = re.compile(
    r"(SECRET|TOKEN|PASSW|CREDENTIAL|_KEY$)(?!.*_FILE$)", re.IGNORECASE
)  # names of variables
_LOGIN = re.compile(r"://[^/\s@]*:[^/\s@]*@")  # a password within a url, as in HTTPS_PROXY


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks of each host, in the file's order. Raises ConfigError that names file and line."""
    try:
        text = read_file(path, MIB, ConfigError).decode()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"the hostfile {path} cannot be read: {reason}") from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        match = _LINE.fullmatch(line)
        if not match:
            raise ConfigError(f"{where}: {line!r} is not of the form HOST slots=N")
        host, slots = match.groups()
        if not _HOST.fullmatch(host):
            raise ConfigError(
                f"{where}: {host!r} is no host name (letters, digits, dots, dashes and underscores "
                "between letters or digits); a user or a port belongs into ~/.ssh/config"
            )
        if not re.fullmatch(r"[1-9][0-9]{0,3}", slots):
            raise ConfigError(f"{where}: slots={slots} is no number of ranks from 1 to 9999")
        if host in hosts:
            raise ConfigError(
                f"{where}: {host} stands there twice; give it one line with all its slots"
            )
        hosts[host] = int(slots)
    if not hosts:
        raise ConfigError(f"the hostfile {path} names no host; write a line HOST slots=N for each")
    return hosts


class Unreachable(ADDPError):
    """Machines on which nothing can be started."""


class Hosts(NamedTuple):
    """slots: of each host. each: ranks on each host; None: as many as it has slots. port: on the
    first host, where the ranks meet. address: of the first host, as the others reach it; None asks
    it over ssh."""

    hostfile: Path
    slots: dict[str, int]
    each: int | None
    port: int
    address: str | None = None

    @property
    def ranks(self) -> int:
        return self.each * len(self.slots) if self.each else sum(self.slots.values())

    @property
    def local(self) -> bool:
        """Whether all of it is this machine, so that nothing goes over ssh."""
        return len(self.slots) == 1 and next(iter(self.slots)) in {
            "localhost",
            "127.0.0.1",
            platform.node(),
            platform.node().partition(".")[0],
        }

    def check(self) -> None:
        """Raises ConfigError without pdsh, or with secrets in .deepspeed_env; Unreachable where ssh
        does not reach a host without a question."""
        if self.local:
            return
        _refuse_secrets()
        if shutil.which("pdsh") is None:
            raise ConfigError(
                "pdsh is not installed here; the launcher starts ranks on other hosts with it"
            )
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(_reach, self.slots))
        problems = [
            f"{host}: {answer}" for host, answer in zip(self.slots, answers, strict=True) if answer
        ]
        if problems:
            raise Unreachable(
                f"ssh does not reach {'; '.join(problems)}. Try `ssh -o BatchMode=yes HOST true`"
            )

    def command(self, module: str, arguments: Sequence[str]) -> list[str]:
        """The deepspeed launcher on all of them. One remote host would start here without
        --force_multi."""
        if self.local:
            where = ["--hostfile", os.devnull, "--num_gpus", str(self.ranks)]
        else:
            where = ["--hostfile", str(self.hostfile.absolute()), "--force_multi", "--no_ssh_check"]
            where += ["--num_gpus", str(self.each)] if self.each else []
            where += ["--master_addr", self.address] if self.address else []
            # pdsh hands the words to a shell; the launcher puts those with spaces into double
            # quotes.
            arguments = [
                re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)
                for word in arguments
            ]
        return [
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            *where,
            "--master_port",
            str(self.port),
            "--module",
            module,
            *arguments,
        ]


def choose_hosts(hostfile: Path, each: int | None, port: int, address: str | None) -> Hosts:
    """As the fields of Hosts. Raises ConfigError."""
    slots = read_hostfile(hostfile)
    few = [f"{host} has {count}" for host, count in slots.items() if each and count < each]
    if few:
        raise ConfigError(
            f"{each} ranks a host are more than the slots in {hostfile}: {', '.join(few)}"
        )
    if address is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:_-]*", address):
        raise ConfigError(f"--master-addr {address!r} is no address")
    return Hosts(hostfile, slots, each, port, address)


def _refuse_secrets() -> None:
    """The launcher would print what it reads there, and other users would see it in the list of
    processes."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    for path in (Path.home() / name, Path(name)):
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        pairs = [
            (name.strip(), value) for name, _, value in (line.partition("=") for line in lines)
        ]
        secret = [name for name, value in pairs if _SECRET.search(name) or _LOGIN.search(value)]
        if secret:
            raise ConfigError(
                f"{path.absolute()} holds {', '.join(secret)}, which the launcher prints and puts "
                "on a command line; keep credentials in ~/.aws/credentials on each host, and only "
                "AWS_PROFILE there"
            )


def _reach(host: str) -> str:
    """What keeps us from starting something there; empty where nothing does."""
    options = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *options, host, "true"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return "ssh is not installed here"
    except subprocess.TimeoutExpired:
        return "no answer within 30 s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
