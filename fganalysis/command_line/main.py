"""The command `fganalysis` and its subcommands: diagnose, check, report and studies.

Nothing heavy is imported before a subcommand runs, so that help is there at once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from fganalysis.command_line import shipped_studies
from fganalysis.command_line.check import Check
from fganalysis.command_line.diagnose import Diagnose


@dataclass(frozen=True)
class Report:
    """Write results as one page for a browser.

    RESULTS is a file or a folder of results, as `fganalysis diagnose --out` and the studies write them.
    """

    results: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RESULTS")]
    """The results."""
    page: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PAGE")] = Path("report.html")
    """The page."""

    def run(self) -> None:
        import fganalysis as fga

        print(fga.report(fga.open_results(self.results), self.page))


@dataclass(frozen=True)
class Studies:
    """List the studies, or run one: `fganalysis studies bias_variance --help`.

    What follows the name goes to the study.
    """

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """The study; without a name, all are listed with their questions."""
    settings: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Settings of the study."""

    def run(self) -> None:
        shipped_studies.run(self.name, self.settings)


Command = (
    Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Studies, tyro.conf.subcommand("studies")]
)


def main() -> None:
    """Reads the command line; what is refused is one sentence without a traceback, with the exit code 2."""
    command = _command(sys.argv[1:])
    try:
        command.run()
    except OSError as error:
        _refuse(error)
    except ValueError as error:
        from fganalysis.results.workers import refused

        if not refused(error):
            raise
        _refuse(error)


def _command(arguments: list[str]) -> Command:
    if arguments[:1] == ["studies"] and arguments[1:] and not arguments[1].startswith("-"):
        return Studies(arguments[1], tuple(arguments[2:]))  # A study reads its settings itself, --help too.
    description = "Gradient estimators for training without backpropagation, measured beside their theory."
    return tyro.cli(Command, prog="fganalysis", description=description, args=arguments)


def _refuse(error: Exception) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
