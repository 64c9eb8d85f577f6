"""The command: `python -m benchmarks [--quick] [--scale] [--peers a,b] [--scenarios a,b] …`."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from benchmarks import peers as registry
from benchmarks import scale
from benchmarks.accounting import raise_descriptor_limit
from benchmarks.machine import describe, split_cores
from benchmarks.native import Load, Upstream, build
from benchmarks.peers.peer import REPOSITORY
from benchmarks.processes import Programs, StartFailed
from benchmarks.progress import Progress
from benchmarks.results import Results, to_json, with_added_delay
from benchmarks.runner import Runner
from benchmarks.scenarios import SCENARIOS, Bench
from benchmarks.sizes import ALL as SIZES
from benchmarks.table import render
from benchmarks.targets import judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.sizes import Sizes

_ROOM = REPOSITORY / "benchmarks"
_RESULTS = _ROOM / "results"
_IMAGES = REPOSITORY / "docs" / "images"
_PLOT_PYTHON = _ROOM / ".venv" / "bin" / "python"
_SCALE_PEERS = ("direct", "nginx", "ours")
_EXIT_FAILED, _EXIT_INTERRUPTED = 1, 130


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure this proxy and its peers side by side; see docs/benchmark.md."
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="rougher, in under 3 minutes")
    size.add_argument(
        "--smoke", dest="size", action="store_const", const="smoke", help="seconds: only that all parts fit"
    )
    parser.set_defaults(size="full")
    parser.add_argument(
        "--scale", action="store_true", help="instead: cost and delay against the number of open streams"
    )
    parser.add_argument(
        "--peers", type=_names, metavar="A,B", help=f"of {','.join(peer.name for peer in registry.ALL)}"
    )
    parser.add_argument("--scenarios", type=_names, metavar="A,B", help=f"of {','.join(one.name for one in SCENARIOS)}")
    parser.add_argument("--rounds", type=int, metavar="N", help="as many rounds of every scenario")
    parser.add_argument("--hold-streams", type=int, metavar="N", help="hold no more than that")
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="leave the cores to the scheduler")
    parser.add_argument("--results", type=Path, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where the plot goes")
    arguments = parser.parse_args(words)
    asked = arguments.peers or (_SCALE_PEERS if arguments.scale else None)
    arguments.peers = _chosen(parser, [peer.name for peer in registry.ALL], asked)
    if arguments.scenarios is not None:
        if arguments.scale:
            parser.error("--scale has scenarios of its own")
        arguments.scenarios = _chosen(parser, [one.name for one in SCENARIOS], arguments.scenarios)
    return arguments


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _chosen(parser: argparse.ArgumentParser, known: Sequence[str], asked: tuple[str, ...] | None) -> list[str]:
    """The names asked for, in the order of those known; all of them by default."""
    for name in asked or ():
        if name not in known:
            parser.error(f"there is no {name!r}; there are {', '.join(known)}")
    return [name for name in known if asked is None or name in asked]


def _sizes(arguments: argparse.Namespace) -> Sizes:
    chosen = SIZES[arguments.size]
    if arguments.rounds is not None:
        chosen = replace(chosen, rounds=dict.fromkeys(chosen.rounds, arguments.rounds))
    if arguments.hold_streams is not None:
        chosen = replace(chosen, hold_streams=arguments.hold_streams)
    return chosen


def main(words: Sequence[str]) -> int:
    """Run, print, write; gives the exit code."""
    arguments = _arguments(words)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    results_path = arguments.results or _RESULTS / ("scale.json" if arguments.scale else "latest.json")
    plot_path = arguments.plot or _IMAGES / ("benchmark-scale.svg" if arguments.scale else "benchmark.svg")
    progress = Progress(1)
    try:
        results = _measure(arguments, progress)
    except StartFailed as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return _EXIT_FAILED
    except KeyboardInterrupt:
        print("benchmarks: interrupted; nothing is left running", file=sys.stderr)
        return _EXIT_INTERRUPTED
    finally:
        progress.close()
    verdicts = [] if arguments.scale else judge(results)
    print(scale.render(results) if arguments.scale else render(results, verdicts))
    results_path.parent.mkdir(parents=True, exist_ok=True)
    results_path.write_text(json.dumps(to_json(results, verdicts), indent=1, ensure_ascii=False) + "\n")
    print(f"figures: {_shown(results_path)}\nplot:    {_plot(results_path, plot_path)}")
    return 0


def _measure(arguments: argparse.Namespace, progress: Progress) -> Results:
    """The run itself. Whatever it starts has ended when it returns or raises."""
    began = time.monotonic()
    sizes = _sizes(arguments)
    descriptors = raise_descriptor_limit()
    proxy_cores, load_cores = split_cores(pin=arguments.pin)
    machine = describe(descriptors=descriptors, proxy_cores=proxy_cores, load_cores=load_cores)
    progress.now("building the upstream and the load")
    upstream_binary, load_binary = build(_ROOM / ".build")
    scenarios = scale.scenarios(sizes, descriptors) if arguments.scale else list(SCENARIOS)
    names = arguments.scenarios
    scenarios = [one for one in scenarios if names is None or one.name in names]
    peers = [peer for peer in registry.ALL if peer.name in arguments.peers]
    with (
        tempfile.TemporaryDirectory(prefix="forward-sse-bench-", ignore_cleanup_errors=True) as directory,
        Programs(cores=load_cores) as helpers,
        Programs(cores=proxy_cores) as programs,
    ):
        upstream = Upstream.start(helpers, upstream_binary, Path(directory))
        bench = Bench(sizes, Load(load_binary, cores=load_cores), upstream, descriptors)
        runner = Runner(bench, programs, Path(directory), progress)
        contenders = runner.run(peers, scenarios)
    return Results(
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        sizes=asdict(sizes),
        machine=machine,
        peers=with_added_delay(tuple(contender.result() for contender in contenders)),
        seconds=time.monotonic() - began,
        repeated=runner.repeated,
    )


def _plot(source: Path, image: Path) -> str:
    """Draw with an interpreter that has matplotlib; gives the image's path, or why there is none."""
    python = sys.executable if find_spec("matplotlib") is not None else str(_PLOT_PYTHON)
    if not Path(python).exists():
        return "none: matplotlib is not installed (`make bench` does)"
    command = [python, "-m", "benchmarks.plot", str(source.resolve()), str(image.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if done.returncode:
        return f"none: {done.stderr.strip().rpartition(chr(10))[2]}"
    return _shown(image)


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    """Any signal to end takes Ctrl-C's way, on which everything is ended."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
