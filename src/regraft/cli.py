"""The command line: each command translates its words, calls the library and prints.

Nothing heavy is imported at the top: `--help`, completion and errors about a study file answer at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from regraft import cli_advise, cli_audit, cli_data, cli_export, cli_predict, cli_science, cli_show, cli_store
from regraft.cli_text import StoreFolder, complete_study, open_store
from regraft.errors import RegraftError, StudyError

if TYPE_CHECKING:
    from regraft.spec import Study

app = typer.Typer(
    name="regraft",
    epilog="Start with `regraft run`. For a study of your own: `regraft presets quickstart > my.yaml`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="The image data sets: what there is, fetch one, look at one.", no_args_is_help=True)
app.add_typer(data_app, name="data")
cli_data.add_to(data_app)
cli_advise.add_to(app)
cli_audit.add_to(app)
cli_science.add_to(app)
cli_show.add_to(app)
cli_store.add_to(app)
cli_predict.add_to(app)
cli_export.add_to(app)


Device = StrEnum("Device", ["auto", "cpu", "cuda", "mps"])
ExecutorName = StrEnum("ExecutorName", ["serial", "processes", "ray"])
PrecisionName = StrEnum("PrecisionName", ["auto", "float32", "bfloat16"])
MechanismName = StrEnum("MechanismName", ["auto", "eager", "compile", "graphs", "seeds"])
BackendName = StrEnum("BackendName", ["auto", "eager", "fused", "inductor", "onnxruntime"])
Stem = StrEnum("Stem", ["imagenet", "cifar"])  # the first layers of a ResNet


StudyName = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="a study file (YAML) or a preset's name", autocompletion=complete_study),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output, for programs")]


def _read_study(name: str) -> Study:
    """Called before a command's heavy imports: an error about the file then comes at once."""
    from regraft.spec import Study

    return Study.from_yaml(name)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"regraft {version('regraft')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="show the traceback of an error; the same as REGRAFT_DEBUG=1")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What is transfer learning worth here? Cut a trained network, graft a new head, compare with scratch."""
    if debug:  # in the environment, so that worker processes see it as well
        os.environ["REGRAFT_DEBUG"] = "1"


@app.command()
def run(
    study: StudyName = "quickstart",
    out: Annotated[
        Path | None, typer.Option(help="folder for table, figures and report; default: regraft-STUDY")
    ] = None,
    store: StoreFolder = None,
    device: Annotated[Device, typer.Option(help="where to compute; auto: cuda, else mps, else cpu")] = Device.auto,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: the physical cores")] = None,
    backend: Annotated[
        BackendName,
        typer.Option(help="of feature extraction; auto: the fastest that agrees with eager, which is plain PyTorch"),
    ] = BackendName.auto,
    mechanism: Annotated[
        MechanismName,
        typer.Option(
            help="of training; auto: eager on a CPU, else the fastest by a measured break-even; seeds: side by side"
        ),
    ] = MechanismName.auto,
    precision: Annotated[
        PrecisionName,
        typer.Option(help="of training; auto: bfloat16 on GPUs that have it, else float32; CPUs may have bfloat16 too"),
    ] = PrecisionName.auto,
    executor: Annotated[
        ExecutorName,
        typer.Option(help="processes: several runs at once on this machine; ray: the same, also on a cluster"),
    ] = ExecutorName.serial,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="how many runs at once; default: 2 for processes, as many as fit for ray"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="of a Ray cluster's head, or auto; default: RAY_ADDRESS, else a Ray of its own on this machine",
        ),
    ] = None,
    gpu_share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="of a GPU, for each run on Ray; 0.25: four at once on each")
    ] = 1.0,
    devices: Annotated[
        int, typer.Option(min=1, help="GPUs (or processes, on a CPU) that train one network together, batch by batch")
    ] = 1,
    feature_gib: Annotated[
        float, typer.Option(min=0.001, help="memory for a head's training features; more are streamed from the store")
    ] = 2.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, no table")] = False,
    as_json: AsJson = False,
    offline: Annotated[bool, typer.Option("--offline", help="use only data and weights already here")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="stop after so many minutes; run again to go on")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="print the address of a page, on this machine only, that follows the run")
    ] = False,
    watch_port: Annotated[
        int, typer.Option(min=0, max=65535, help="port of that page; 0: a free one", show_default=False)
    ] = 0,
) -> None:
    """Run a study: compute what the store lacks, then write results.csv, results.json and report.html.

    Stop it as often as you like (Ctrl-C, kill, power): the same command goes on where it was.
    Exit code: 0 every row scored, 3 some rows missing (the reason is shown), 2 wrong study or usage,
    1 another error, 130 stopped by Ctrl-C.
    """
    chosen = _read_study(study)
    from regraft.cli_run import Wishes, execute

    wishes = Wishes(
        out=out or Path(f"regraft-{chosen.study}"), device=device.value, threads=threads, offline=offline,
        executor=executor.value, workers=workers, address=address, gpu_share=gpu_share,
        devices=devices, feature_bytes=int(feature_gib * 2**30), quiet=quiet, as_json=as_json,
        minutes=minutes, backend=backend.value, mechanism=mechanism.value,
        precision=precision.value, watch=watch_port if watch or watch_port else None,
    )  # fmt: skip
    raise typer.Exit(execute(chosen, open_store(store), wishes))


@app.command()
def plan(study: StudyName, store: StoreFolder = None) -> None:
    """Check a study and show what it would do: runs, shared steps, what the store has, images, disk, time, and what
    each recipe made from a preset is."""
    chosen = _read_study(study)
    from regraft.study import presets
    from regraft.study.plan import plan as runs_of
    from regraft.study.planning import estimate

    for line in [*estimate(chosen, open_store(store)).lines(), *presets.told(chosen, runs_of(chosen))]:
        typer.echo(line)


@app.command()
def lr_find(
    study: StudyName,
    row: Annotated[str, typer.Argument(metavar="ROW", help="name of a row of the study")],
    recipe: Annotated[str | None, typer.Option(help="which of the row's recipes; default: its first")] = None,
    steps: Annotated[int, typer.Option(min=20, help="mini-batches at most")] = 100,
    out: Annotated[Path | None, typer.Option(help="file of the figure: .svg, .png, .pdf or .html")] = None,
    store: StoreFolder = None,
    device: Annotated[Device, typer.Option(help="where to compute; auto: cuda, else mps, else cpu")] = Device.auto,
    offline: Annotated[bool, typer.Option("--offline", help="use only data and weights already here")] = False,
    as_json: AsJson = False,
) -> None:
    """Find a learning rate for a row: let it rise over some mini-batches of its training images, and watch the loss.

    Validation and test images are not looked at, and nothing is kept but the figure.
    """
    chosen = _read_study(study)
    from regraft import cli_text
    from regraft.study.lr_find import find_learning_rate

    with cli_text.share_bar(row) as advance:
        run, found = find_learning_rate(
            chosen, row, open_store(store),
            recipe=recipe, steps=steps, device=device.value, offline=offline, advance=advance,
        )  # fmt: skip
    cli_text.show_rates_json(run, found) if as_json else cli_text.show(cli_text.rates_text(chosen, run, found))
    if out:
        cli_text.draw_rates(run, found, out)


@app.command()
def status(study: StudyName, store: StoreFolder = None) -> None:
    """Show how far a study is: cells scored and missing, row by row, with the reason."""
    chosen = _read_study(study)
    from regraft import cli_text
    from regraft.study.results import read_results

    cli_text.show(cli_text.progress_table(read_results(chosen, open_store(store))))


@app.command()
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="key of an artifact, or its first characters")],
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Show one artifact of the store: what determined it, what it holds, what it took."""
    from regraft import cli_text

    shelf = open_store(store)
    artifact = shelf.read(shelf.find(key))
    cli_text.show_json(artifact) if as_json else cli_text.show(cli_text.artifact_text(artifact))


@app.command()
def prune(
    studies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STUDY]...", help="studies to keep everything of", autocompletion=complete_study),
    ] = None,
    store: StoreFolder = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be removed")] = False,
) -> None:
    """Remove from the store what none of the named studies needs; none named: only what is broken or abandoned."""
    keep = [_read_study(name) for name in studies or []]
    from regraft import cli_text
    from regraft.study.prune import prune as prune_store

    cli_text.show(cli_text.pruned_table(prune_store(open_store(store), keep, dry_run=dry_run), dry_run=dry_run))


@app.command()
def presets(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="print this preset's YAML, to start your own from")
    ] = None,
) -> None:
    """List the shipped studies, each with its question and cost; with NAME print its file."""
    from regraft import cli_text

    typer.echo(cli_text.preset_yaml(name), nl=False) if name else cli_text.show(cli_text.presets_table())


@app.command()
def schema() -> None:
    """Print the JSON schema of a study file, for editors that complete and check YAML."""
    import json

    from regraft.spec import Study

    typer.echo(json.dumps(Study.model_json_schema(), indent=2))


@app.command()
def cuts(
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="torchvision or timm name, as resnet18")],
    image_size: Annotated[int, typer.Option(min=1, help="side of the image in pixels")] = 224,
    stem: Annotated[Stem, typer.Option(help="cifar: 3x3 first convolution, no max-pooling")] = Stem.imagenet,
) -> None:
    """List where a network can be cut: name, depth, shape, parameters and FLOPs up to there."""
    from regraft import cli_text
    from regraft.networks import describe

    points = describe(network, stem=stem.value, image_size=image_size)
    cli_text.show(cli_text.cuts_table(network, points, image_size))


@data_app.command("list")
def data_list() -> None:
    """List the data sets with their sizes, and whether they are on this machine."""
    from regraft import cli_text
    from regraft.data import dataset_info, dataset_names

    cli_text.show(cli_text.data_table([dataset_info(name) for name in dataset_names()]))


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as in `regraft data list`, or folder:PATH")],
    source: Annotated[
        Path | None, typer.Option("--from", help="folder that holds the published files or their archive")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="side in pixels to keep pictures at that come in any size")
    ] = None,
) -> None:
    """Fetch a data set (or take it from a folder), check its digests, and keep it for every study."""
    from regraft import cli_text
    from regraft.data import dataset_info, load_dataset

    with cli_text.transfer_bar(name) as report:
        load_dataset(name, image_size, source_dir=source, report=report)
    cli_text.show(cli_text.data_text(dataset_info(name)))


@data_app.command("info")
def data_info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as in `regraft data list`, or folder:PATH")],
) -> None:
    """Show a data set: classes, images, size, digest, and the ways to get it."""
    from regraft import cli_text
    from regraft.data import dataset_info

    cli_text.show(cli_text.data_text(dataset_info(name)))


@app.command()
def doctor() -> None:
    """Check this machine: versions, device, threads, disk, folders, and which data can be had."""
    from regraft import cli_text
    from regraft.doctor import examine

    cli_text.show(cli_text.doctor_table(examine()))


def main() -> None:
    """The whole command. An error of the user's is one clear message, not a traceback."""
    try:
        app()
    except (RegraftError, OSError) as error:
        if os.environ.get("REGRAFT_DEBUG") or (isinstance(error, OSError) and not error.errno):
            raise  # an OSError without a number is not the system's
        from regraft.show.text import printable_lines

        said = of_the_disk(error) if isinstance(error, OSError) else str(error)
        typer.echo(f"error: {printable_lines(said)}", err=True)
        raise SystemExit(2 if isinstance(error, StudyError) else 1) from None


def of_the_disk(error: OSError) -> str:
    """What to say where a file can be neither read nor written, and nobody nearer knew what it was for."""
    return (
        f"{error.filename or 'a file'}: {error.strerror or error}. Free some space or check the permissions, and that "
        "its disk or share is there; then run again, what is finished is kept."
    )


def program() -> NoReturn:
    """Entry point of the process: `main`, then the end at once.

    All files are written and closed by then; to take down torch's modules one by one takes most of a second."""
    try:
        main()
        code = 0
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        code = end.code or 0
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read them has gone
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    program()
