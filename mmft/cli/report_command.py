"""`mmft report RUN [RUN ...]`: the HTML report of a run, made again, or one page that compares several.

Training commands call `write_page` at their end, which does the same for the run that has just finished.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mmft.cli.console import say
from mmft.cli.run_arguments import RunParser
from mmft.errors import ConfigError
from mmft.models.snapshots import local_folder
from mmft.report.page_data import REPORT_FILE, write_report

DESCRIPTION = (
    "Makes report.html of a run from the files of its folder: curves, tables and held-out samples with their "
    "pictures, on one page that needs no network. Of several runs it makes one page that compares them."
)

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Writes the page and says where it is."""
    parser = RunParser(prog="mmft report", description=DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its hub id")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where the page goes; by default RUN/report.html, of several ./report.html",
    )
    arguments = parser.parse_args(argv)
    target = target_file(arguments.runs, arguments.output)
    folders = [local_folder(name) for name in arguments.runs]
    names = [Path(name).resolve() if Path(name).is_dir() else Path(name) for name in arguments.runs]
    say(said(write_report(folders, target, names)))
    return 0


def target_file(runs: Sequence[str], output: str | None) -> Path:
    """Where the page goes: into the folder of a run, or here where it is of several, or downloaded.

    Raises:
        ConfigError: that is a folder.
    """
    folder = Path(runs[0])
    default = folder / REPORT_FILE if len(runs) == 1 and folder.is_dir() else Path(REPORT_FILE)
    target = default if output is None else Path(output)
    if target.is_dir():
        raise ConfigError(
            f"`--output` {target} is a folder; name a file in it, such as {target / REPORT_FILE}."
        )
    return target


def said(path: Path) -> str:
    """Where a page is, and how large."""
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser"


def write_page(folder: Path) -> None:
    """The report of a run that has just finished."""
    try:
        write_report([folder], folder / REPORT_FILE)
    except Exception as error:  # the weights are written: a page must not cost the way to them
        logger.exception("the report of %s", folder)
        reason = f"{type(error).__name__}: {error}"
        say(f"note: no {REPORT_FILE} is written ({reason}); `mmft report {folder}` tries again.")
