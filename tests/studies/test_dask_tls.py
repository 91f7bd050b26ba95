"""A scheduler that is reached by TLS: with its certificate cells are computed, without it nobody is told anything.

Skipped without the extra `distributed` and without the program openssl, which makes the certificate.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fganalysis.results.cells import run_cells, same
from fganalysis.results.on_dask import coordinator, logs
from tests.unit.results.small_cells import small_cells

pytest.importorskip("distributed", reason="the extra `distributed` is not installed")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the program openssl is not installed")
ROLES = ("scheduler", "worker", "client")


def certificate(folder: Path) -> dict[str, Any]:
    """Dask's configuration, as docs/many_machines.md has it, for a certificate that is made here."""
    folder.mkdir()
    subject = ("-subj", "/CN=fganalysis", "-days", "1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject], check=True, capture_output=True
    )
    files = {f"{role}.{part}": str(folder / f"{part}.pem") for role in ROLES for part in ("cert", "key")}
    files["ca-file"] = str(folder / "cert.pem")
    of_tls = {f"distributed.comm.tls.{name}": value for name, value in files.items()}
    return of_tls | {"distributed.comm.require-encryption": True}


@pytest.fixture
def quiet() -> Iterator[None]:
    """Without what dask logs about refused connections, and with its loggers as they were afterwards."""
    loggers = [logging.getLogger(name) for name in logs.LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    logs.log_to([])
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_cells_are_computed_over_tls_by_those_who_have_the_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    import dask
    from distributed import LocalCluster
    from distributed.security import Security

    known, stranger = certificate(tmp_path / "known"), certificate(tmp_path / "stranger")
    with dask.config.set(known):
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            protocol="tls",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # With None it is the port 8787, which another run may have.
            security=Security(),
        )
        with cluster:
            address = cluster.scheduler_address
            assert address.startswith("tls://")
            found = run_cells(small_cells(2), tmp_path / "tls", scheduler=address)
            here = run_cells(small_cells(2), tmp_path / "here")
            assert found.computed == 2 and all(same(found[name], here[name]) for name in here)
            monkeypatch.setattr(coordinator, "SECONDS_TO_CONNECT", 1.0)
            words = f"^no scheduler of dask answers at {address}, with the certificates of dask's configuration"
            with dask.config.set(stranger), pytest.raises(OSError, match=words):
                run_cells(small_cells(2), tmp_path / "stranger's", scheduler=address)
            assert not list((tmp_path / "stranger's").rglob("*.nc"))
