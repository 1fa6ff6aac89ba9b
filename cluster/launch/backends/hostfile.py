"""Ranks on the hosts of a hostfile: the DeepSpeed launcher starts them over ssh, with pdsh."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.launch.backend import LaunchCommand, LaunchRequest
from cluster.launch.deepspeed_launcher import deepspeed_command
from model.errors import ADDPError, ConfigError

# Names of variables that hold a secret; a variable that names a FILE with one does not.
_SECRET = re.compile(r"(SECRET|TOKEN|PASSW|CREDENTIAL|_KEY$)(?!.*_FILE$)", re.IGNORECASE)
_LOGIN = re.compile(r"://[^/\s@]*:[^/\s@]*@")  # a password within a url, as in HTTPS_PROXY
_MOST_AT_ONCE = 32  # hosts that are asked at the same time
_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 30


class UnreachableHosts(ADDPError):
    """There are hosts on which nothing can be started."""


class HostfileBackend:
    """Starts ranks on each host of the request's hostfile."""

    def check(self, request: LaunchRequest) -> None:
        """Raise ConfigError without a hostfile or pdsh, or with secrets in .deepspeed_env.

        Raises UnreachableHosts where ssh does not reach a host without asking a question.
        """
        _hostfile(request)
        _refuse_secrets()
        if shutil.which("pdsh") is None:
            raise ConfigError(
                "pdsh is not installed here; the launcher starts ranks on other hosts with it"
            )
        with ThreadPoolExecutor(_MOST_AT_ONCE) as pool:
            answers = list(pool.map(_reach, request.hosts.slots))
        problems = [
            f"{host}: {answer}"
            for host, answer in zip(request.hosts.slots, answers, strict=True)
            if answer
        ]
        if problems:
            raise UnreachableHosts(
                f"ssh does not reach {'; '.join(problems)}. Try `ssh -o BatchMode=yes HOST true`"
            )

    def command(self, request: LaunchRequest) -> LaunchCommand:
        hosts, hostfile = request.hosts, _hostfile(request)
        # Without --force_multi, DeepSpeed would start the ranks of a single remote host here.
        where = ["--hostfile", str(hostfile.absolute()), "--force_multi", "--no_ssh_check"]
        if hosts.ranks_per_host is not None:
            where += ["--num_gpus", str(hosts.ranks_per_host)]
        if hosts.address is not None:
            where += ["--master_addr", hosts.address]
        return deepspeed_command(request, where, [_quoted(word) for word in request.arguments])


def _hostfile(request: LaunchRequest) -> Path:
    if request.hosts.hostfile is None:
        raise ConfigError("the backend hostfile needs a hostfile; give one with --hostfile")
    return request.hosts.hostfile


def _quoted(word: str) -> str:
    """Return a word as the launcher has to be given it.

    pdsh hands all words to a shell on the other host. The launcher puts those with spaces into
    double quotes, where $, ` and \\ still mean something; it passes on the others as they are.
    """
    return re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)


def _refuse_secrets() -> None:
    """Raise ConfigError where the launcher's file of variables holds secrets.

    The launcher would print what it reads there, and other users would see it in the list of
    processes.
    """
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    for path in (Path.home() / name, Path(name)):
        if secrets := _secrets(_lines(path)):
            raise ConfigError(
                f"{path.absolute()} holds {', '.join(secrets)}, which the launcher prints and puts "
                "on a command line; keep credentials in ~/.aws/credentials on each host, and only "
                "AWS_PROFILE there"
            )


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _secrets(lines: Iterable[str]) -> list[str]:
    """Return the names of the variables that hold a secret."""
    pairs = [(name.strip(), value) for name, _, value in (line.partition("=") for line in lines)]
    return [name for name, value in pairs if _SECRET.search(name) or _LOGIN.search(value)]


def _reach(host: str) -> str:
    """Return what keeps us from starting something on the host; empty where nothing does."""
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    options += shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    try:
        done = subprocess.run(
            ["ssh", *options, host, "true"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return "ssh is not installed here"
    except subprocess.TimeoutExpired:
        return f"no answer within {_ANSWER_SECONDS} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
