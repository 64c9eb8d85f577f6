"""What a request or an event costs in instructions: `python -m benchmarks.instructions [--events N] [--ledger] …`.

CPU time differs by a third from one round to the next on a shared machine, so that a step of one per cent cannot be
seen in it. The number of instructions in user space, counted by valgrind's callgrind, differs by a thousandth. It knows
nothing of the kernel, of caches and of mispredicted branches: `make bench` has the last word.

With `--functions` and Python 3.12 or later it also prints what each Python function cost with all that it called: `-X
perf` gives each an entry of its own in memory, which callgrind takes for a function.
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.native import Load, Upstream, build
from benchmarks.peers.ours import CONFIG, token
from benchmarks.peers.peer import REPOSITORY, Started, secret
from benchmarks.processes import Program, Programs, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WARM_REQUESTS: Final = 100
START_S: Final = 120.0
RUN_S: Final = 600.0
# So far apart that, slowed by valgrind fifty times, each is still a read of its own.
INTERVAL_US: Final = 20_000
CALLGRIND: Final = ("valgrind", "--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes", "--dump-instr=no")
LEDGER: Final = 'usage: {{ledger: "sqlite:///{directory}/ledger.db"}}\n'
_FUNCTION = re.compile(r"c?fn=\((\d+)\)(?: (.*))?")
_PYTHON = re.compile(r"py::(.*):(/.*)")


class Counted(NamedTuple):
    """What one dump of callgrind says of the loop's thread."""

    total: int
    functions: dict[str, int]


def main(words: Sequence[str]) -> int:
    """Count, print; gives the exit code."""
    arguments = _arguments(words)
    with tempfile.TemporaryDirectory(prefix="forward-sse-instructions-") as place, Programs() as programs:
        counted = _count(arguments, Path(place), programs)
    per = arguments.requests * arguments.events if arguments.events > 1 else arguments.requests
    print(f"{counted.total / per:,.0f} instructions per {'event' if arguments.events > 1 else 'request'}")
    costs = sorted(counted.functions.items(), key=lambda pair: -pair[1])
    for name, cost in costs[: arguments.functions]:
        print(f"{cost / per:12,.0f}  {name}")
    return 0


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--requests", type=int, default=400, metavar="N", help="as many are counted")
    parser.add_argument("--events", type=int, default=1, metavar="N", help="of each; more than one are paced")
    parser.add_argument("--ledger", action="store_true", help="with an SQLite ledger")
    parser.add_argument("--usage", action="store_true", help="of a vendor whose streams end with their usage")
    parser.add_argument("--config", default="", metavar="YAML", help="lines of the proxy's configuration besides")
    parser.add_argument("--tree", type=Path, default=REPOSITORY, metavar="DIR", help="another tree of this project")
    parser.add_argument("--python", default=sys.executable, help="with the packages of the proxy")
    parser.add_argument(
        "--functions", type=int, default=0, metavar="N", help="so many Python functions (3.12 or later)"
    )
    return parser.parse_args(words)


def _count(arguments: argparse.Namespace, place: Path, programs: Programs) -> Counted:
    programs_made = REPOSITORY / "benchmarks" / ".build"
    if arguments.usage:
        upstream_binary, load_binary = build(programs_made / "usage", "-DTELLS_USAGE")
    else:
        upstream_binary, load_binary = build(programs_made)
    upstream = Upstream.start(programs, upstream_binary, place)
    port, key, config = free_port(), secret(), place / "proxy.yaml"
    extra = arguments.config.replace("\\n", "\n") + (LEDGER.format(directory=place) if arguments.ledger else "")
    text = CONFIG.format(port=port, admin_port=free_port(), key=key, upstream=upstream.port)
    config.write_text(f"{text}{extra}\n")
    perf = ("-X", "perf") if arguments.functions else ()
    serve = (arguments.python, *perf, "-m", "proxy", "serve", "--config", config)
    counter = (*CALLGRIND, f"--callgrind-out-file={place}/counts")
    environment = {"PYTHONPATH": str(arguments.tree), "PYTHONHASHSEED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    program = programs.start("forward-sse", (*counter, *serve), place, environment)
    program.wait_for_port(port, deadline_s=START_S)
    started = Started(port, (program,), (f"Authorization: Bearer {token(config)}",))
    load = Load(load_binary)
    paced = ("--interval-us", INTERVAL_US) if arguments.events > 1 else ()
    options = ("--events", arguments.events, *paced, "--expect-exact")

    def run(requests: int) -> None:
        load.run(started, "/forward-sse", "request", ("--requests", requests, *options), limit_s=RUN_S)

    run(WARM_REQUESTS if arguments.events == 1 else 2)
    _control(program, "--instr=on")
    run(20 if arguments.events == 1 else 1)
    _control(program, "--zero")
    run(arguments.requests)
    _control(program, "--dump")
    names = dict(_names(program.pid)) if arguments.functions else {}
    return read(_dump(place), names)


def _control(program: Program, word: str) -> None:
    subprocess.run(["callgrind_control", word, str(program.pid)], check=True, capture_output=True, timeout=60)


def _dump(place: Path) -> Path:
    """The loop's thread is the first; its file is whole once its last line is there."""
    for _ in range(600):
        for path in place.glob("counts.*-01"):
            if "totals:" in path.read_text():
                return path
        time.sleep(0.1)
    raise SystemExit("callgrind wrote nothing")


def _names(pid: int) -> Iterator[tuple[int, str]]:
    """Where each Python function's own entry is, as CPython writes it for `perf`."""
    path = Path(f"/tmp/perf-{pid}.map")  # noqa: S108 - perf's own place
    for line in path.read_text().splitlines():
        start, _, name = line.split(" ", 2)
        if (found := _PYTHON.match(name)) is not None:
            source = found[2].rpartition("/proxy/")[2] if "/proxy/" in found[2] else found[2].rpartition("/")[2]
            yield int(start, 16), f"{source} {found[1]}"
    path.unlink()


def read(path: Path, names: dict[int, str]) -> Counted:
    """The total, and what each function of `names` cost with all that it called; a recursion counts once a level."""
    known: dict[str, str] = {}
    functions: collections.Counter[str] = collections.Counter()
    total, called, calls_next = 0, "", False
    for line in path.read_text().splitlines():
        if line.startswith("totals:"):
            total = int(line.split()[1])
        elif (found := _FUNCTION.match(line)) is not None:
            number, name = found[1], found[2]
            if name is not None:
                known[number] = name
            if line.startswith("c"):
                called = known.get(number, "")
        elif line.startswith("calls="):
            calls_next = True
        elif calls_next:
            calls_next = False
            if (
                called.startswith("0x")
                and (python := names.get(int(called.partition("'")[0].split()[0], 16))) is not None
            ):
                functions[python] += int(line.split()[-1])
    return Counted(total, dict(functions))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
