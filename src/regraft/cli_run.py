"""What `regraft run` does around `run_study`: progress, time limit, files, closing lines, exit code."""

from __future__ import annotations

import _thread
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from regraft.cli_text import show, this_command
from regraft.errors import RegraftError, StoreError, StudyError
from regraft.show.progress import choose_display
from regraft.show.text import printable
from regraft.spec import Study
from regraft.study.events import Event, PlanReady, Report, StudyDone
from regraft.study.plan import plan
from regraft.study.results import Results, read_results
from regraft.study.store import Store

if TYPE_CHECKING:  # needed in some runs only
    from regraft.show.watch import LiveView
    from regraft.study.executors import Executor

COMPLETE, INCOMPLETE, INTERRUPTED = 0, 3, 130  # 130 = 128 + SIGINT, as shells report it
OWN_AUDIT_SECONDS = 10.0  # estimated; a longer one is left to `regraft audit`


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How to run, none of which changes a result."""

    out: Path
    device: str
    threads: int | None
    offline: bool
    backend: str  # of feature extraction
    mechanism: str  # of training
    precision: str  # the same
    executor: str  # "serial", "processes" or "ray"
    workers: int | None  # steps at once; None: the executor's own number
    address: str | None  # of a Ray cluster
    gpu_share: float  # of a GPU, for a step on Ray
    devices: int  # that train one network together
    feature_bytes: int  # of a head's training features in memory
    quiet: bool
    as_json: bool
    minutes: float | None
    watch: int | None  # port of the live page, 0 for a free one; None: no page


def execute(study: Study, store: Store, wishes: Wishes) -> int:
    """Run `study`, write its files, print the outcome; returns the exit code."""
    try:
        return _executed(study, store, wishes)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped; what is finished is kept. Go on with: {this_command()}", err=True)
        return INTERRUPTED


def _executed(study: Study, store: Store, wishes: Wishes) -> int:
    fresh = make_folder(wishes.out)  # before hours of work, not after
    with _live_page(study, store, wishes) as page:
        try:
            with time_limit(wishes.minutes) as limit, choose_display(_kind(wishes)) as report:
                results = _computed(study, store, wishes, _both(report, page))
        except StudyError:
            if fresh:
                wishes.out.rmdir()
            raise
        except KeyboardInterrupt:
            if not limit.reached.is_set():
                raise
            results = read_results(study, store)
        if not results.missing:
            _audit_if_small(study, store)
        write_files(results, wishes.out)
        _print_outcome(results, wishes)
        if page:
            page.finish(wishes.out / "report.html")
    return INCOMPLETE if results.missing else COMPLETE


@contextmanager
def _live_page(study: Study, store: Store, wishes: Wishes) -> Iterator[LiveView | None]:
    """Where the run can be followed in a browser, if that is wished; its address is printed."""
    if wishes.watch is None:
        yield None
        return
    from regraft.show.watch import live_view

    with live_view(study, store, port=wishes.watch, command=this_command()) as (page, address):
        typer.echo(f"Follow the run at {address}", err=True)
        yield page


def _both(display: Report, page: LiveView | None) -> Report:
    """Tells the terminal and the live page."""
    if page is None:
        return display

    def report(event: Event) -> None:
        display(event)
        page.report(event)

    return report


def _computed(study: Study, store: Store, wishes: Wishes, report: Report) -> Results:
    """The study's results, once all that is left of it is computed."""
    began = time.perf_counter()
    finished = read_results(study, store)
    if not finished.missing:  # told at once: the engine's libraries take seconds to import
        runs = len(plan(study))
        report(PlanReady(study.study, runs, runs, 0.0))
        report(StudyDone(time.perf_counter() - began, len(finished.cells), 0))
        return finished
    from regraft.study.run import run_study

    return run_study(
        study, store, _executor(wishes),
        report=report, device=wishes.device, threads=wishes.threads, offline=wishes.offline,
        backend=wishes.backend, mechanism=wishes.mechanism, precision=wishes.precision,
        devices=wishes.devices, feature_bytes=wishes.feature_bytes,
    )  # fmt: skip


def _executor(wishes: Wishes) -> Executor:
    from regraft.study.executors import SERIAL, Processes

    if wishes.executor == "ray":
        from regraft.study.ray_executor import Ray

        return Ray(wishes.address, workers=wishes.workers, gpu_share=wishes.gpu_share)
    if wishes.address is not None:
        raise StudyError(f"--address is for --executor ray, got --executor {wishes.executor}")
    return Processes(wishes.workers or 2) if wishes.executor == "processes" else SERIAL


def _audit_if_small(study: Study, store: Store) -> None:
    """Have the audit for the report, where it takes seconds; larger ones are `regraft audit`'s.

    A stop or a failure here costs the report its audit, and nothing else."""
    from regraft.study.audit import audit, audit_seconds_estimate, stored_audit

    seconds = audit_seconds_estimate(study)
    if seconds is None or seconds > OWN_AUDIT_SECONDS:
        return
    try:
        if stored_audit(study, store) is None:
            audit(study, store, offline=True)
    except (RegraftError, KeyboardInterrupt) as error:
        why = printable(str(error)) or "stopped"
        typer.echo(f"Not audited: {why}. Audit it with: regraft audit STUDY", err=True)


def make_folder(folder: Path) -> bool:
    """Whether it had to be made. Raises StoreError unless files can be written there."""
    fresh = not folder.exists()
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return fresh


def write_files(results: Results, folder: Path) -> None:
    """results.csv (what the study determines), results.json (and what it took), report.html."""
    from regraft.show.report import write_report  # brings the drawing library

    with _writing(folder):
        if not results.cells:
            _set_aside(folder)
        results.to_csv(folder / "results.csv")
        results.to_json(folder / "results.json")
        write_report(results, folder / "report.html", command=this_command())


def _set_aside(folder: Path) -> None:
    """Results of before, where there are none now: the data or a share have gone, and may come back."""
    table = folder / "results.csv"
    if not table.is_file() or len(table.read_text("utf-8", errors="replace").splitlines()) < 2:
        return
    for file in (table, folder / "results.json", folder / "report.html"):
        if file.is_file():
            file.replace(file.with_stem(f"{file.stem}-before"))
    typer.echo(
        f"Nothing could be scored now; the results of before are kept: {folder / 'results-before.csv'}", err=True
    )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write to {folder}: {error.strerror or error}; name another folder with --out"
        ) from error


@dataclass(frozen=True)
class Limit:
    """Tells a stop by the clock from a stop by the user."""

    reached: threading.Event


@contextmanager
def time_limit(minutes: float | None) -> Iterator[Limit]:
    """Raise KeyboardInterrupt in the main thread after `minutes`: steps stop as they do for Ctrl-C."""
    limit = Limit(threading.Event())
    if minutes is None:
        yield limit
        return
    main = threading.get_ident()

    def stop() -> None:
        limit.reached.set()
        if sys.platform == "win32":  # pragma: no cover: another operating system
            _thread.interrupt_main()
        else:  # a real signal also wakes a main thread that waits for worker processes
            signal.pthread_kill(main, signal.SIGINT)

    timer = threading.Timer(60 * minutes, stop)
    timer.daemon = True
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # as for a command that a shell runs in the background: the clock must still be heard
        signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        yield limit
    finally:
        timer.cancel()
        if before is signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)


def _kind(wishes: Wishes) -> str:
    if wishes.as_json:
        return "json"
    return "quiet" if wishes.quiet else "auto"


def _print_outcome(results: Results, wishes: Wishes) -> None:
    """The table and where the files are, on stdout; what is missing and why, on stderr."""
    if wishes.as_json:
        content = json.loads((wishes.out / "results.json").read_text("utf-8"))
        typer.echo(json.dumps({"event": "results", "results": content}))
    elif not wishes.quiet:
        from regraft.show.tables import results_table

        show(results_table(results))
        typer.echo(f"Written to {wishes.out}: results.csv, results.json, report.html")
    for reason, cells in _by_reason(results).items():
        typer.echo(f"missing: {printable(', '.join(cells))}: {printable(reason)}", err=True)
    if results.missing:
        typer.echo(f"Finished runs are kept; go on with: {this_command()}", err=True)


def _by_reason(results: Results) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for cell in results.missing:
        found.setdefault(cell.reason, []).append(f"{cell.row} [seed {cell.seed}]")
    return found
