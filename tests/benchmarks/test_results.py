"""What the harness concludes from its samples: medians, ratios, verdicts, the table and the JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import scale, targets
from benchmarks.results import Cell, PeerResult, Results, Sample, cell, from_json, to_json, with_added_delay
from benchmarks.scenarios import quantile
from benchmarks.sizes import QUICK
from benchmarks.table import grid, number, render


def test_quantile_is_a_value_of_the_sample() -> None:
    """The quantile is the smallest value that the share does not exceed."""
    ordered = [float(value) for value in range(1, 101)]
    assert [quantile(ordered, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert quantile([7.0], 0.99) == 7


def test_cell_takes_medians_and_keeps_failures() -> None:
    """A cell is the median of each figure, and any failure of any round makes it unsound."""
    sound = cell([Sample({"a": 3.0, "b": 1.0}), Sample({"a": 1.0}), Sample({"a": 2.0})])
    assert (sound.figures, sound.rounds, sound.is_sound) == ({"a": 2.0, "b": 1.0}, 3, True)
    assert (sound.by_round, sound.stolen) == ({"a": [3.0, 1.0, 2.0], "b": [1.0]}, [0.0] * 3)
    unsound = cell([Sample({"a": 1.0}), Sample({"a": 2.0}, {"no [DONE]": 2}), Sample({}, {"no [DONE]": 1})])
    assert (unsound.failures, unsound.is_sound) == ({"no [DONE]": 3}, False)


MACHINE = {
    "cores": 2,
    "cpu": "one",
    "kernel": "Linux 6",
    "proxy_cores": [1],
    "load_cores": [0],
    "revision": "abc",
    "is_modified": False,
}


def _result(name: str, title: str, **scenarios: dict[str, float]) -> PeerResult:
    cells = {scenario: Cell(dict(found), {}, 3) for scenario, found in scenarios.items()}
    return PeerResult(name, title, "measured", version="1", cells=cells)


def _results(**changes: PeerResult) -> Results:
    """A run in which everything was reached, unless a peer is changed."""
    peers = {
        "direct": _result("direct", "no proxy", paced={"delay_p50_us": 40.0, "delay_p99_us": 90.0}),
        "nginx": _result(
            "nginx",
            "nginx",
            request={"cpu_us_per_request": 25.0},
            paced={"cpu_us_per_event": 12.0, "delay_p50_us": 100.0, "delay_p99_us": 200.0},
            flat={"cpu_us_per_event": 1.0},
            hold={"kib_per_stream": 17.0},
        ),
        "nginx_auth": _result("nginx_auth", "nginx + auth_request", request={"cpu_us_per_request": 200.0}),
        "litellm": _result(
            "litellm", "LiteLLM", request={"cpu_us_per_request": 20_000.0}, paced={"cpu_us_per_event": 1_000.0}
        ),
        "ours": _result(
            "ours",
            "forward-sse",
            request={"cpu_us_per_request": 100.0},
            paced={"cpu_us_per_event": 15.0, "delay_p50_us": 300.0, "delay_p99_us": 500.0},
            flat={"cpu_us_per_event": 2.0},
            hold={"kib_per_stream": 17.0},
            cancel={"cancel_p50_us": 500.0, "cancel_p99_us": 10_000.0},
            slow={"kib_per_stream": 256.0},
        ),
    }
    return Results(
        "2026-11-21T00:00:00+00:00",
        {"name": "test", "rounds": {"hold": 4}},
        MACHINE,
        with_added_delay(tuple({**peers, **changes}.values())),
    )


def _states(results: Results) -> list[str]:
    return [verdict["state"] for verdict in targets.judge(results)]


def test_ratios_and_added_delay() -> None:
    """Ratios are of medians, and a delay is told as what it adds to the one without a proxy."""
    results = _results()
    assert results.ratio("ours", "nginx", "paced", "cpu_us_per_event") == 1.25
    assert results.value("ours", "paced", "added_p50_us") == 260
    assert results.value("nginx", "paced", "added_p99_us") == 110
    assert results.value("direct", "paced", "added_p50_us") is None
    assert results.ratio("ours", "haproxy", "paced", "cpu_us_per_event") is None


def test_targets_at_their_bounds_are_reached() -> None:
    """Each bound itself is still reached."""
    assert set(_states(_results())) == {"reached"}


@pytest.mark.parametrize(
    ("place", "scenario", "figures"),
    [
        (0, "paced", {"cpu_us_per_event": 15.01}),
        (1, "request", {"cpu_us_per_request": 150.1}),
        (2, "hold", {"kib_per_stream": 17.1}),
        (3, "paced", {"cpu_us_per_event": 15.0, "delay_p50_us": 400.1, "delay_p99_us": 500.0}),
        (4, "paced", {"cpu_us_per_event": 15.0, "delay_p50_us": 300.0, "delay_p99_us": 500.1}),
        (5, "flat", {"cpu_us_per_event": 2.01}),
        (6, "paced", {"cpu_us_per_event": 17.0}),
        (7, "request", {"cpu_us_per_request": 200.1}),
        (8, "cancel", {"cancel_p99_us": 10_001.0}),
        (9, "slow", {"kib_per_stream": 256.1}),
    ],
)
def test_target_beyond_its_bound(place: int, scenario: str, figures: dict[str, float]) -> None:
    """A figure beyond the bound is not reached."""
    assert _states(_results(ours=_result("ours", "forward-sse", **{scenario: figures})))[place] == "not reached"


def test_wrong_answers_are_no_result() -> None:
    """A scenario with any failure has no figure, no ratio and no verdict, however fast it was."""
    ours = _results().peer("ours")
    assert ours is not None
    ours.cells["paced"].failures["event missing"] = 1
    results = _results(ours=ours)
    assert results.value("ours", "paced", "cpu_us_per_event") is None
    states = _states(results)
    assert [states[place] for place in (0, 3, 4, 6)] == ["not measured"] * 4
    assert states[1] == "reached"
    text = render(results, targets.judge(results))
    assert "FAILED" in next(line for line in text.splitlines() if line.startswith("forward-sse  "))
    assert "forward-sse, paced: FAILED: 1 × event missing" in text


def test_table_names_the_absent_and_the_failed() -> None:
    """A peer that is not there, or did not start, has its row and its reason."""
    results = _results(
        nginx=PeerResult("nginx", "nginx", "absent", reason="not installed"),
        litellm=PeerResult(
            "litellm", "LiteLLM", "failed", version="1", reason="did not start:\nTraceback\nImportError"
        ),
    )
    text = render(results, targets.judge(results))
    rows = [line.split() for line in text.splitlines()]
    assert ["nginx", "absent"] in rows
    assert ["LiteLLM", "failed"] in rows
    assert "nginx: absent: not installed" in text
    assert "LiteLLM: failed: did not start: Traceback ImportError" in text
    assert "busy: hold had fewer rounds" in text
    assert _states(results).count("not measured") == 7
    assert "not reached" not in text


def test_table_tells_what_the_host_took() -> None:
    """The median and the worst share that the host took away are told, and how often it made a load run again."""
    ours = _results().peer("ours")
    assert ours is not None
    ours.cells["paced"].stolen.extend([0.0, 0.014, 0.4])
    disturbed = replace(_results(ours=ours), repeated=2)
    line = "The host took 1.4% of the machine's time away during the median load, 40% during the worst; 2 loads"
    assert line in render(disturbed, [])
    assert line in scale.render(disturbed)
    assert "The host" not in render(_results(), [])


def test_grid_keeps_columns_in_line() -> None:
    """The first column stands to the left, the others to the right."""
    assert grid([["", "a"], ["one", "1"], ["two", "22"]], 1).splitlines() == [
        "      a",
        "-------",
        "one   1",
        "two  22",
    ]


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1,234"), (99.94, "99.9"), (1.234, "1.23"), (-0.001, "0.00")])
def test_number(value: float, text: str) -> None:
    """Figures are told with about three digits."""
    assert number(value) == text


def test_json_shape() -> None:
    """The JSON has the machine, every peer with its state, the ratios and the verdicts, and can be read back."""
    results = _results(haproxy=PeerResult("haproxy", "HAProxy", "absent", reason="not installed"))
    document = json.loads(json.dumps(to_json(results, targets.judge(results))))
    assert set(document) == {"schema", "date", "seconds", "repeated", "sizes", "machine", "peers", "ratios", "targets"}
    assert document["peers"]["haproxy"]["state"] == "absent"
    assert document["peers"]["ours"]["scenarios"]["paced"] == {
        "figures": {
            "cpu_us_per_event": 15.0,
            "delay_p50_us": 300.0,
            "delay_p99_us": 500.0,
            "added_p50_us": 260.0,
            "added_p99_us": 410.0,
        },
        "failures": {},
        "rounds": 3,
        "by_round": {},
        "stolen": [],
    }
    assert document["ratios"]["to_nginx"]["paced.cpu_us_per_event"]["ours"] == 1.25
    assert document["ratios"]["ours_to_nginx_auth"]["request.cpu_us_per_request"] == 0.5
    assert document["ratios"]["litellm_to_ours"]["request.cpu_us_per_request"] == 200
    assert document["targets"][0]["state"] == "reached"
    assert from_json(document) == results


def test_scale_points() -> None:
    """The chart's points are the sound ones, in order; more streams than the descriptors let through are left out."""
    ours = _result("ours", "forward-sse", scale_400={"cpu_us_per_event": 2.0}, scale_50={"cpu_us_per_event": 1.0})
    results = _results(ours=ours)
    assert scale.points(results, "ours", "cpu_us_per_event") == [(50, 1.0), (400, 2.0)]
    assert [one.name for one in scale.scenarios(QUICK, 1_400)] == ["scale_50", "scale_400"]
    assert "400" in scale.render(results)
