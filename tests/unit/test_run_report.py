"""What a person reads at the end of a run."""

from __future__ import annotations

from typing import Any

import pytest

from streamll.views.run_report import SHOWN, format_findings, format_run


def operation(n: int, **other: Any) -> dict[str, Any]:
    row = {"operation": f"step {n}", "calls": 3, "errors": 1, "events": 2, "total_ms": 9.0}
    return {**row, "p50_ms": 2.0, "p95_ms": 5.0, "max_ms": 5.5, **other}


def spot(n: int, share: float = 0.5) -> dict[str, Any]:
    return {"function": f"f{n}", "file": "/app/shop.py", "line": n, "self_share": share, "total_share": 0.75}


def report(**other: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "program": "shop.py",
        "status": None,
        "seconds": 12.5,
        "cpu_seconds": 3.25,
        "operations": {"operations": [operation(1), operation(2, calls=0, p50_ms=None, p95_ms=None, max_ms=None)]},
        "profiler": {"hot_spots": [spot(7), spot(8, share=0.0)]},
        "memory": {
            "current_mb": 45.0,
            "peak_mb": 60.25,
            "explanation": "Steady.",
            "confidence": 0.875,
        },
        "loops": {
            "blocked": 2,
            "blocked_seconds": 0.5,
            "blockers": [{"frame": "/app/shop.py:9 in pay", "seconds": 0.5, "count": 2}],
        },
        "sinks": {
            "redis": {
                "accepted": 1200,
                "delivered": 1190,
                "dropped": {"buffer_full": 7},
                "dead_lettered": 3,
                "destination": "redis://localhost",
            }
        },
        "balanced": True,
        "monitoring": {"seconds": {"profiler": 0.25, "memory": 0.0001}, "changes": 0},
    }
    return {**whole, **other}


def test_says_what_ended_what_took_the_time_and_what_watching_cost() -> None:
    assert format_run(report()).splitlines() == [
        "streamll: shop.py ended after 12.50 s, 3.25 s of processor time",
        "",
        "operation  calls  errors  events  p50 ms  p95 ms  max ms  total ms",
        "step 1         3       1       2   2.000   5.000   5.500     9.000",
        "step 2         0       1       2       -       -       -         -",
        "",
        "hot spot   self  total  where",
        "f7        50.0%  75.0%  /app/shop.py:7",
        "",
        "memory: 45.0 MiB at the end, 60.2 MiB at most; Steady. (confidence 88%)",
        "",
        "event loops were blocked 2 times, for 0.50 s, most of it by",
        "  /app/shop.py:9 in pay: 0.50 s, 2 times",
        "",
        "redis: 1,190 of 1,200 events delivered to redis://localhost, 7 dropped, 3 dead letters",
        "watching took 0.250 s of processor time (profiler 250 ms)",
    ]


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "ended"), (3, "ended with 3"), ("signal", "was ended by a signal"), ("interrupted", "was interrupted")],
)
def test_says_how_it_ended(status: object, words: str) -> None:
    assert f"shop.py {words} after" in format_run(report(status=status))


def test_tables_end_somewhere_and_nothing_is_no_table() -> None:
    many = format_run(
        report(
            operations={"operations": [operation(n) for n in range(SHOWN + 4)]},
            profiler={"hot_spots": [spot(n) for n in range(SHOWN + 2)]},
        )
    )
    assert "... and 4 more" in many
    assert "... and 2 more" in many
    bare = {name: part for name, part in report().items() if name not in ("profiler", "memory", "loops")}
    few = format_run({**bare, "operations": {"operations": []}, "sinks": {}, "balanced": False})
    assert few.splitlines()[-2:] == [
        "the numbers do not balance: a defect of streamll, please report it",
        "watching took 0.250 s of processor time (profiler 250 ms)",
    ]


def test_says_what_it_does_not_know() -> None:
    memory = {"current_mb": None, "peak_mb": None, "explanation": "Too few readings.", "confidence": 0.0}
    loops = {"blocked": 0, "blocked_seconds": 0.0, "blockers": []}
    found = format_findings(
        report(profiler={"hot_spots": []}, memory=memory, loops=loops, monitoring={"seconds": {}, "changes": 2})
    )
    assert found.splitlines() == [
        "no samples: nothing ran for long enough",
        "",
        "memory: not known here; Too few readings.",
        "watching took 0.000 s of processor time; it left something out to keep within its target",
    ]


def test_no_text_of_the_program_reaches_the_terminal_as_it_is() -> None:
    hostile = "\x1b[31mred\n"
    said = format_run(report(program=hostile, operations={"operations": [operation(1, operation=hostile)]}))
    assert "\x1b" not in said
