"""Steps in worker processes of Ray: on this machine's cores and GPUs, or on those of a cluster.

The driver (this process) hands out steps and keeps no result: those are in the store, which every node sees. So a
worker, a node or the driver may die at any time; what they were at is computed again, from its last checkpoint.
Ray is imported nowhere else, and here only once it is needed: it reads its environment at that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regraft.errors import RegraftError, RunError, StoreError, StudyError
from regraft.learn.hardware import physical_cores
from regraft.study.bench import Bench, Setting
from regraft.study.events import Event, Note, Report, StepAdvanced, StepDone, StepFailed, StepStarted
from regraft.study.executors import WORKER_DIED, Found, RunAll, Stage, attempt, busy_ones_last
from regraft.study.features import obtain_features
from regraft.study.files import write_text
from regraft.study.fits import obtain_fits
from regraft.study.keys import cacheable
from regraft.study.locks import Busy
from regraft.study.stages import obtain_data, obtain_score, obtain_weights
from regraft.study.steps import Step

WORKER_DEATHS = 2  # in which a step has had its hand: then it has failed
NODE_DEATHS = 5  # a node's death is seldom the step's doing
CONNECT_SECONDS, ANSWER_SECONDS = 5, 20  # to reach a cluster's port; to have an answer of Ray there
LOOK_SECONDS = 5.0  # between two looks at what the cluster has
NODE_WAIT_SECONDS = 600.0  # for a node that a step fits on, once there is none left
OBJECT_STORE_BYTES = 100 * 2**20  # of a Ray started here: steps and events are small, results go to the store
NO_RAY = "the executor ray needs the package ray; install it with: pip install 'regraft[ray]'"
NODE_DIED = f"the nodes it ran on died {NODE_DEATHS} times; run again once the cluster is well"


class Ray:
    """Worker processes of Ray: one started here for this study (no address), or a cluster's.

    address: HOST:PORT of the cluster's head, or "auto" for the cluster that this machine is a node of; without one
    the environment's RAY_ADDRESS, if that is set.  workers: at most so many steps at once.  gpu_share: of a GPU, for
    each step that computes on images; 0.25 lets four share one.  A step that needs no GPU takes only cores.
    Raises StudyError if Ray is not installed."""

    def __init__(self, address: str | None = None, *, workers: int | None = None, gpu_share: float = 1.0) -> None:
        if importlib.util.find_spec("ray") is None:
            raise StudyError(NO_RAY)
        if not 0 < gpu_share <= 1:
            raise StudyError(f"a step's share of a GPU must be more than 0 and at most 1, got {gpu_share}")
        self.address = address or os.environ.get("RAY_ADDRESS") or "local"
        if "://" in self.address:
            raise StudyError(
                f"{self.address!r} is no address of a cluster's head; give HOST:PORT as `ray start --head` prints it, "
                "or auto, on a machine that is a node of the cluster"
            )
        self.workers, self.gpu_share = workers, gpu_share

    def threads(self) -> int:
        """One core a step: the same number on every node, or a training's last digits would depend on the node."""
        return 1

    @contextlib.contextmanager
    def started(self, bench: Bench, report: Report) -> Iterator[RunAll]:
        """Raises RunError if the cluster cannot be reached, or has no node that a step fits on."""
        threads = bench.setting.threads or 1
        cores = threads * self.workers if self.workers else max(threads, physical_cores())
        with _connected(self.address, cores, report), _mark(bench) as mark:
            workers = _Workers(self, bench, report, mark)
            try:
                yield lambda stage, steps: busy_ones_last(workers.attempt_all, stage, steps)
            finally:
                workers.close()


def _ray() -> Any:
    """Imported once it is needed, after `_prepare`. As Any: not all of Ray is typed."""
    import ray

    return ray


# --- the connection ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(address: str, cores: int, report: Report) -> Iterator[None]:
    """Within it this process is a driver of the cluster. A connection that is there already is used, and stays."""
    _prepare(local=address == "local")
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        quiet |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    else:
        _check_answer(address)
    try:
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
        raise RunError(f"could not join the Ray cluster {address}: {_last_line(str(error))}") from error
    if os.environ.get("RAY_AUTH_MODE") != "token":
        report(Note("This Ray cluster asks for no token: whoever reaches its ports can run programs on it."))
    try:
        yield
    finally:
        ray.shutdown()


def _prepare(*, local: bool) -> None:
    """Authentication on and usage statistics off, unless the user has decided. Ray reads it when it is imported."""
    if "ray" in sys.modules:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" in os.environ:
        return
    known = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if not known and not (Path.home() / ".ray" / "auth_token").exists():
        if not local:
            return
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this process and those it starts
    os.environ["RAY_AUTH_MODE"] = "token"


def _check_answer(address: str) -> None:
    """Raises RunError within half a minute where no Ray answers: Ray itself would try for many."""
    advice = "Is the cluster up, its address right, and its token here? On the head: ray status"
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise StudyError(f"the address of a Ray cluster is HOST:PORT or auto, got {address!r}")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise RunError(f"nothing answers at {address} ({error}). {advice}") from None
    ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    try:
        done = subprocess.run(
            ask if address == "auto" else [*ask, "--address", address],
            capture_output=True, text=True, timeout=ANSWER_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RunError(f"no Ray answers at {address} within {ANSWER_SECONDS} s. {advice}") from None
    if done.returncode:
        why = _last_line(done.stderr) or "no reason given"
        raise RunError(f"no Ray answers at {address}: {why.rstrip('.')}. {advice}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


@contextlib.contextmanager
def _mark(bench: Bench) -> Iterator[Path]:
    """A file in the store by which a worker sees whether it has the same store."""
    mark = bench.store.root / "tmp" / f"cluster-{secrets.token_hex(8)}"
    write_text(mark, "")
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


# --- the driver -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know of the study."""

    setting: Setting
    mark: str
    version: str  # of regraft
    debug: str | None


@dataclass(frozen=True)
class _Answer:
    """A step's result, and its events that may not come late."""

    found: RegraftError | Busy | None
    told: list[Event]


class _Workers:
    """Hands steps to Ray, a few more than there are places, and sends those out again whose worker or node died."""

    def __init__(self, wish: Ray, bench: Bench, report: Report, mark: Path) -> None:
        ray = self.ray = _ray()
        self.bench, self.report, self.most = bench, report, wish.workers
        self.cores = bench.setting.threads or 1
        self.share, self.device, self.device_else = _devices(bench.setting.device, wish.gpu_share)
        self.places, self._looked, self._without_place = 0, -LOOK_SECONDS, 0.0
        self._look(hopeless=True)
        self.job = ray.put(_Job(bench.setting, str(mark), version("regraft"), os.environ.get("REGRAFT_DEBUG")))
        self.name = mark.name
        # On this node: it lives as long as the driver. A worker's events go through it; results do not.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.letters: Any = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Letters).remote()
        self.letter = self.letters.take.remote()
        # No second try of Ray's own: it is not known to the driver. A GPU is left by leaving the process (max_calls).
        self.on_core = ray.remote(num_cpus=self.cores, max_retries=0)(_in_worker)
        self.on_gpu = ray.remote(num_cpus=self.cores, num_gpus=self.share, max_retries=0, max_calls=1)(_in_worker)
        self.working: dict[Any, Step] = {}  # by the reference of its answer
        self.begun: set[str] = set()  # ids reported as started

    def attempt_all(self, stage: Stage, steps: Iterable[Step], wait_for_others: bool) -> Found:
        """The result of each step."""
        if stage in (obtain_weights, obtain_data):  # the driver plans by them; a worker that lacks them fetches them
            return {step: attempt(stage, step, self.bench, self.report, wait_for_others) for step in steps}
        found: Found = {}
        deaths: Counter[tuple[Step, int]] = Counter()
        waiting = deque(steps)
        while waiting or self.working:
            self._look()
            while waiting and len(self.working) < min(2 * self.places, self.most or sys.maxsize):
                self._send(stage, waiting.popleft(), wait_for_others)
            for step, answer in self._answers():
                if isinstance(answer, _Answer):
                    found[step] = answer.found
                    continue
                deaths[step, answer] += 1
                if deaths[step, answer] < answer:
                    waiting.appendleft(step)
                else:
                    reason = WORKER_DIED if answer == WORKER_DEATHS else NODE_DIED
                    self.report(StepFailed(step.id, step.stage, step.label, reason))
                    found[step] = RunError(reason)
        return found

    def close(self) -> None:
        """Steps still at work are stopped, as after Ctrl-C; what is finished is in the store."""
        for reference in self.working:
            self.ray.cancel(reference, force=True)
        self.ray.kill(self.letters)

    def _send(self, stage: Stage, step: Step, wait_for_others: bool) -> None:
        on_gpu = self.share > 0 and _wants_gpu(stage, step)
        task, device = (self.on_gpu, self.device) if on_gpu else (self.on_core, self.device_else)
        small = replace(step, runs=())  # which may be thousands
        reference = task.remote([self.job], self.name, stage, small, wait_for_others, device, self.letters)
        self.working[reference] = step

    def _answers(self) -> list[tuple[Step, _Answer | int]]:
        """Steps that have ended since the last call: with an answer, or by a death, as how many of its kind end it."""
        ready, _ = self.ray.wait([self.letter, *self.working], num_returns=1, timeout=LOOK_SECONDS)
        errors = self.ray.exceptions
        answers: list[tuple[Step, _Answer | int]] = []
        for reference in ready:
            if reference == self.letter:
                self._read_letter()
                continue
            step = self.working.pop(reference)
            try:
                answer = self.ray.get(reference)
            except (errors.WorkerCrashedError, errors.OutOfMemoryError):
                answers.append((step, WORKER_DEATHS))
                continue
            except errors.NodeDiedError:
                answers.append((step, NODE_DEATHS))
                continue
            except errors.RayTaskError as error:  # before the step began, or for debugging
                raise error.cause if isinstance(error.cause, Exception) else RunError(_last_line(str(error))) from None
            for event in answer.told:
                if not (isinstance(event, StepStarted) and event.id in self.begun):
                    self.report(event)
            self.begun.discard(step.id)
            answers.append((step, answer))
        return answers

    def _read_letter(self) -> None:
        try:
            events = self.ray.get(self.letter)
        except self.ray.exceptions.RayActorError:
            events = []  # its process was killed, and begins anew: some progress goes unseen, no result is lost
        self.letter = self.letters.take.remote()
        at_work = {step.id for step in self.working.values()}
        for event in events:  # one that comes after its step's answer is of no use
            if event.id in at_work and not (isinstance(event, StepStarted) and event.id in self.begun):
                self.begun.add(event.id)
                self.report(event)

    def _look(self, *, hopeless: bool = False) -> None:
        """How many steps fit on the cluster now. Raises RunError if none does: at once, or (it did) after a while."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked, self.places = now, _places(self.cores, self.share)
        if self.places:
            self._without_place = 0.0
            return
        need = f"{self.cores} CPU{'s' * (self.cores > 1)}" + (f" and {self.share:g} GPU" if self.share else "")
        self._without_place = self._without_place or now
        if hopeless or now - self._without_place > NODE_WAIT_SECONDS:
            raise RunError(f"no node of the Ray cluster has the {need} that a step takes; see: ray status")
        if self._without_place == now:
            self.report(Note(f"No node is left that has {need}; waiting for one."))


def _devices(wish: str, share: float) -> tuple[float, str, str]:
    """(GPUs of a step on images, its device, the device of any other step) on this cluster."""
    ray = _ray()
    if wish.split(":")[0] not in ("auto", "cuda"):
        return 0.0, wish, wish
    if ray.cluster_resources().get("GPU", 0) >= share:
        return share, "cuda", "cpu"
    if wish != "auto":
        raise StudyError(f"device {wish!r}: the Ray cluster has no GPU; see: ray status")
    return 0.0, "cpu", "cpu"


def _places(cores: int, share: float) -> int:
    """How many steps that take so much can run at once."""
    ray = _ray()
    fitting = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        by_cores = int(has.get("CPU", 0) // cores)
        fitting += min(by_cores, int(has.get("GPU", 0)) * int(1 / share + 1e-9)) if share else by_cores
    return fitting


def _wants_gpu(stage: Stage, step: Step) -> bool:
    """Whether the step runs a network on images. Heads on stored features are linear algebra, for a core."""
    if stage is obtain_score:
        return not cacheable(step.item)
    return stage in (obtain_features, obtain_fits)


# --- the workers ------------------------------------------------------------------------------------------------


class _Letters:
    """An actor that holds the workers' events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._some = asyncio.Event()

    async def put(self, event: Event) -> None:
        self._events.append(event)
        self._some.set()

    async def take(self) -> list[Event]:
        """All events since the last call, at least one."""
        await self._some.wait()
        self._some.clear()
        taken, self._events = self._events, []
        return taken


_AT_HAND: tuple[str, str, Bench] | None = None  # job, device, and the bench that this process keeps for them


def _in_worker(
    job: list[Any], name: str, stage: Stage, step: Step, wait_for_others: bool, device: str, letters: Any
) -> _Answer:
    bench, told = _bench(job, name, device), list[Event]()

    def report(event: Event) -> None:
        if isinstance(event, StepStarted | StepDone | StepFailed):
            told.append(event)
        if isinstance(event, StepStarted | StepAdvanced):
            letters.put.remote(event)

    return _Answer(attempt(stage, step, bench, report, wait_for_others), told)


def _bench(job: list[Any], name: str, device: str) -> Bench:
    global _AT_HAND
    if _AT_HAND is None or _AT_HAND[:2] != (name, device):
        ray = _ray()
        told: _Job = ray.get(job[0])
        where = f"the Ray node {ray.util.get_node_ip_address()}"
        if version("regraft") != told.version:
            raise RunError(f"{where} has regraft {version('regraft')}, the driver {told.version}; install the same")
        if "://" not in told.setting.store and not Path(told.mark).exists():
            raise StoreError(
                f"{where} does not see the store {told.setting.store}; name a folder that all nodes share, or a URL"
            )
        if told.debug:
            os.environ["REGRAFT_DEBUG"] = told.debug
        _AT_HAND = name, device, Bench(replace(told.setting, device=device))
    return _AT_HAND[2]
