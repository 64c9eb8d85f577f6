"""How much load a run makes: the full one, the quick one, and the one that only proves that the parts fit."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sizes:
    """The loads of one kind of run. A peer's share scales the counts of streams and requests."""

    name: str
    # How often each scenario is measured; a round goes over all peers before the next begins.
    rounds: dict[str, int]
    # Bytes of text in an event: a few words, as models send them.
    event_bytes: int = 32
    warm_up_requests: int = 400

    request_connections: int = 32
    requests: int = 20_000

    paced_streams: int = 400
    paced_events: int = 300
    paced_interval_us: int = 20_000
    paced_ramp_ms: int = 1_000

    # Streams at a time, and answers in all: one for each would be over before its CPU could be told from noise.
    flat_streams: int = 20
    flat_answers: int = 200
    flat_events: int = 2_000

    # None: as many as the descriptors let through.
    hold_streams: int | None = None
    hold_ramp_ms: int = 8_000
    hold_s: float = 4.0
    hold_interval_us: int = 1_000_000

    cancel_streams: int = 2_000
    # Few enough that a proxy is not busy opening streams: what is asked is how soon an end is seen.
    cancel_connections: int = 20
    cancel_leave_ms: int = 100
    cancel_first_us: int = 50_000

    slow_streams: int = 20
    # More than the kernel's buffers on the way take, so that the stall reaches the proxy; in few, large events, as the
    # peers that read every event would else need a minute for what was kept back.
    slow_events: int = 800
    slow_bytes: int = 16_384
    slow_stall_s: float = 4.0

    # Streams at each point of the chart of scale; the events of a second are the same at every point.
    scale_streams: tuple[int, ...] = (50, 100, 200, 400, 800, 1_600, 3_200, 8_000)
    scale_events_per_s: int = 8_000
    scale_hold_s: float = 6.0
    scale_ramp_ms: int = 8_000
    # Once so much time has gone by, no scenario's second or later round is begun: a busy machine gets fewer rounds.
    budget_s: float | None = None
    # A load during which the host took a larger share of the machine's time is run again, so often, unless the run has
    # lasted too long by then; the one it disturbed least counts. Memory is not disturbed, and is not read again.
    stolen_limit: float = 0.03
    repeats: int = 0
    repeat_until_s: float = 1_500.0
    # A peer that took longer to start is not started afresh for the scenarios about memory.
    restart_limit_s: float | None = None
    notes: tuple[str, ...] = field(default=())


FULL = Sizes(
    name="full",
    rounds={"hold": 3, "request": 5, "paced": 5, "flat": 5, "cancel": 3, "slow": 3, "scale": 3},
    repeats=2,
)

QUICK = Sizes(
    name="quick",
    rounds={"hold": 1, "request": 2, "paced": 2, "flat": 2, "cancel": 2, "slow": 1, "scale": 1},
    requests=4_000,
    paced_events=150,
    paced_ramp_ms=800,
    flat_streams=10,
    flat_answers=40,
    hold_streams=2_000,
    hold_ramp_ms=2_000,
    hold_s=1.5,
    cancel_streams=400,
    slow_streams=10,
    slow_stall_s=1.5,
    scale_streams=(50, 400, 3_200),
    scale_hold_s=3.0,
    scale_ramp_ms=4_000,
    budget_s=120.0,
    restart_limit_s=6.0,
    notes=("A quick run: fewer rounds and shorter ones; its figures are rough.",),
)

SMOKE = Sizes(
    name="smoke",
    rounds={"hold": 1, "request": 1, "paced": 1, "flat": 1, "cancel": 1, "slow": 1, "scale": 1},
    warm_up_requests=20,
    requests=100,
    request_connections=4,
    paced_streams=10,
    paced_events=10,
    paced_interval_us=10_000,
    paced_ramp_ms=50,
    flat_streams=2,
    flat_answers=4,
    flat_events=200,
    hold_streams=50,
    hold_ramp_ms=100,
    hold_s=0.5,
    cancel_streams=40,
    cancel_connections=10,
    cancel_leave_ms=20,
    cancel_first_us=10_000,
    slow_streams=2,
    slow_events=50,
    slow_stall_s=0.5,
    scale_streams=(10, 50),
    scale_events_per_s=500,
    scale_hold_s=0.5,
    scale_ramp_ms=100,
    notes=("A smoke run: it proves that the parts fit; its figures say nothing.",),
)

ALL = {sizes.name: sizes for sizes in (FULL, QUICK, SMOKE)}
