"""The whole story: from a study to its results. Start reading here."""

from __future__ import annotations

from regraft.errors import StudyError
from regraft.spec import Study
from regraft.study.account import Account
from regraft.study.bench import FEATURE_BYTES, Bench, Setting
from regraft.study.check import check
from regraft.study.events import Report, silent
from regraft.study.executors import SERIAL, Executor, Serial
from regraft.study.features import obtain_features
from regraft.study.fits import obtain_fits
from regraft.study.heads import obtain_heads
from regraft.study.keys import Keys
from regraft.study.plan import plan, waves
from regraft.study.results import Results, read_results
from regraft.study.stages import obtain_data, obtain_score, obtain_weights
from regraft.study.store import Store, default_store


def run_study(
    study: Study,
    store: Store | None = None,
    executor: Executor = SERIAL,
    *,
    report: Report = silent,
    device: str = "auto",
    threads: int | None = None,
    offline: bool = False,
    backend: str = "auto",
    mechanism: str = "auto",
    precision: str = "auto",
    devices: int = 1,
    feature_bytes: int = FEATURE_BYTES,
) -> Results:
    """Compute every run of `study` that `store` lacks; return them all.

    Stop and start it as often as you like, and as many processes at once as you like. Rows whose data or weights
    cannot be had, or whose training fails, are missing from the result with the reason; the others are computed.
    backend: of feature extraction; "auto" is the fastest that agrees with plain PyTorch (`learn.backends.BACKENDS`).
    mechanism: of training (`learn.mechanisms`); "auto" is eager on a CPU, and on a GPU the fastest by measure;
    "seeds" trains the seeds of a row side by side.
    precision: of training and answers; "auto" is bfloat16 on GPUs that have it, else float32.
    devices: that train one network together, a process for each; it is one step at a time then.
    feature_bytes: that the training features of a head may take in memory; more of them are streamed from the store.
    Raises StudyError before anything is started if the study is wrong."""
    store = store or default_store()
    runs = plan(study)  # no image is read yet
    keys = Keys(runs, store, offline=offline)
    here = Keys(runs, store, offline=True)  # nothing is fetched before the display is up
    check(runs, here)
    if devices > 1 and not isinstance(executor, Serial):
        raise StudyError(f"devices: {devices} for one training, and several steps at once; use the serial executor")
    bench = Bench(
        Setting(
            store.location, tuple(runs), device, threads or executor.threads(), offline, backend, mechanism, precision,
            devices, feature_bytes,
        )
    )  # fmt: skip
    account = Account(study, keys, bench, report)
    if (finished := read_results(study, store, keys=here)).missing:
        with executor.started(bench, report) as run_all:
            account.settle(run_all(obtain_weights, account.weights_steps()))
            account.settle(run_all(obtain_data, account.data_steps()))
            account.begin()
            for wave in waves(runs):  # a source run comes before the runs that cut it
                account.settle(run_all(obtain_features, account.feature_steps(wave)))
                account.settle(run_all(obtain_heads, account.head_steps(wave)))  # on features, a cell's together
                account.settle(run_all(obtain_fits, account.fit_steps(wave)))  # on images
                refits = account.refits(wave)  # chosen on validation, then trained with the validation images too
                account.settle(run_all(obtain_heads, account.head_steps(refits)))
                account.settle(run_all(obtain_fits, account.fit_steps(refits)))
            # The best recipe of each cell on validation is scored: the only step that meets test labels.
            account.settle(run_all(obtain_score, account.score_steps()))
        finished = read_results(study, store, keys=keys, reasons=account.failed)
    store.clear_finished()
    account.end(finished)
    return finished
