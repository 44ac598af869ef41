"""Start one program of the stack: clear what an earlier, killed one left, then become the program.

usage: launch.py FILE [DIGEST]

FILE is JSON {service, argv, env, unset, cwd, group_file}, written by programs.ts; `{boot_id}` in argv becomes a fresh
UUID, so that an engine's name says which start of it answers. DIGEST changes with FILE, which is how the supervisor
sees that a program changed. Imports little: this runs at every start.

The supervisor gives each program a process group of its own. The group is written to group_file, because neither
environment nor command line tell whose a process is: vLLM and PostgreSQL overwrite both with titles.
"""

import contextlib
import json
import os
import signal
import sys
import time


def stat_of(pid: int) -> tuple[int, str] | None:
    """Process group and start time (clock ticks after boot); None for a zombie or none at all."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[2]), fields[19].decode()


def leftovers(group: int, start_time: str) -> list[int]:
    """Living members of a group. A leader with another start time is a stranger: the group had ended before."""
    leader = stat_of(group)
    if leader is not None and leader[1] != start_time:
        return []
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and (stat := stat_of(pid)) is not None and stat[0] == group]


def end_leftovers(service: str, group_file: str) -> None:
    try:
        with open(group_file, encoding="ascii") as file:
            group, start_time = file.read().split()
    except FileNotFoundError:
        return
    deadline = time.monotonic() + 20
    told: set[int] = set()
    while pids := leftovers(int(group), start_time):
        for pid in pids:
            if pid not in told:
                print(f"launch: ending process {pid}, left by an earlier {service}", flush=True)
                told.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            sys.exit(f"launch: processes {pids} of an earlier {service} do not end")
        time.sleep(0.05)


def record_group(group_file: str) -> None:
    stat = stat_of(os.getpid())
    assert stat is not None
    with open(f"{group_file}.new", "w", encoding="ascii") as file:
        file.write(f"{stat[0]} {stat[1]}\n")
    os.replace(f"{group_file}.new", group_file)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        program = json.load(file)
    end_leftovers(program["service"], program["group_file"])
    record_group(program["group_file"])
    environment = {**os.environ, **program["env"]}
    for name in program["unset"]:
        environment.pop(name, None)
    with open("/proc/sys/kernel/random/uuid", encoding="ascii") as file:
        boot_id = file.read().strip()
    argv = [argument.replace("{boot_id}", boot_id) for argument in program["argv"]]
    os.chdir(program["cwd"])
    os.execvpe(argv[0], argv, environment)


main()
