"""The files of public datasets: where they are searched, what they must contain, and how they are downloaded.

The folders searched, in this order: `FGA_DATA`, the user's cache folder for fganalysis, `./data` (where torchvision's
users have them) and the folder of Debian's dataset packages. Content is checked against known hashes, wherever it is
from. What is downloaded is kept in `FGA_DATA` where that is set, in the user's cache folder otherwise.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from fganalysis.arguments import check_path, described


@dataclass(frozen=True)
class Source:
    """Where the files of a dataset may lie below a data folder, the SHA-256 of their content, where they come from.

    `content` maps the plain name of a file to the SHA-256 of what is in it once decompressed: distributors recompress.
    `downloads` are the compressed files at `url`, whose content is checked like that of files in the data folders.
    """

    folders: tuple[str, ...]
    content: Mapping[str, str]
    url: str
    downloads: tuple[str, ...]


IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

# Fashion-MNIST: computed from Debian's package dataset-fashion-mnist 0.0~git20200523.55506a9-1. MNIST: as listed by
# several independent public projects, which agree. CIFAR-10: as listed by the Ruby port of torchvision, beside the
# archive's, which many other projects list too.
SOURCES: Mapping[str, Source] = {
    "fashion_mnist": Source(
        folders=("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
        content={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        downloads=tuple(f"{name}.gz" for name in IDX_FILES),
    ),
    "mnist": Source(
        folders=("mnist", "MNIST/raw"),
        content={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        downloads=tuple(f"{name}.gz" for name in IDX_FILES),
    ),
    "cifar10": Source(
        folders=("cifar10", "cifar-10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "."),
        content={
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        },
        url="https://www.cs.toronto.edu/~kriz/",
        downloads=("cifar-10-binary.tar.gz",),
    ),
}


def data_folders() -> list[Path]:
    """List the folders that hold datasets, the one to write to first."""
    import pooch

    folders = [Path(pooch.os_cache("fganalysis")), Path("data"), Path("/usr/share/datasets")]
    named = os.environ.get("FGA_DATA")
    return [Path(named).expanduser(), *folders] if named else folders


def fetch(source: Source) -> dict[str, bytes]:
    """Find every file of a source in the data folders, else download them; give the content by file name.

    A damaged file in the folder that downloads go to is set aside (renamed, and named on the terminal).

    Raises
    ------
    ValueError
        If a file found elsewhere cannot be decompressed or has another SHA-256, or the one downloaded has.
    FileNotFoundError
        If a file is in no folder and the download fails.
    """
    folders = data_folders()
    files: dict[str, bytes] = {}
    for folder in folders:
        for below in source.folders:
            try:
                files = read_folder(folder / below, source) | files
            except Damaged as error:
                if folder != folders[0]:
                    raise
                set_aside(error.path, str(error))
            if len(files) == len(source.content):
                return files
    target = folders[0] / source.folders[0]
    _download(source, target)
    return read_folder(target, source)


def read_file(path: object) -> bytes:
    """Read a file that somebody names.

    Raises
    ------
    ValueError
        If it is no path, or the file does not exist or cannot be read.
    """
    if path is None:
        raise ValueError("path must name the file of the text, got None")
    check_path("path", path)
    try:
        return Path(str(path)).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(
            f"{described(str(path))} cannot be read: {(error.strerror or type(error).__name__).lower()}"
        ) from error


class Damaged(ValueError):
    """A data file that does not hold what it should."""

    def __init__(self, path: Path, fault: str):
        super().__init__(f"{path} {fault}: delete it, or replace it by an intact copy")
        self.path = path


def set_aside(path: Path, why: str) -> None:
    """Renames a damaged file, so that it is kept but no longer read, and names it on the terminal."""
    aside = path.with_name(f"{path.name}.damaged-{uuid4().hex[:8]}")
    try:
        os.replace(path, aside)
        print(f"{why}; it is now {aside.name}", file=sys.stderr)
    except OSError:
        print(f"{why}; it cannot be renamed", file=sys.stderr)


def read_folder(folder: Path, source: Source) -> dict[str, bytes]:
    """Read those files of a source that a folder holds, plain, gzipped or in the source's archive, and check them.

    Raises
    ------
    ValueError
        If a file found cannot be decompressed or its content has another SHA-256.
    """
    locations: dict[str, Path] = {}
    for name in source.content:
        archives = [download for download in source.downloads if download.endswith(".tar.gz")]
        paths = [folder / candidate for candidate in (name, f"{name}.gz", *archives)]
        present = [path for path in paths if path.is_file()]
        if present:
            locations[name] = present[0]
    files: dict[str, bytes] = {}
    for path in sorted(set(locations.values())):
        names = [name for name, where in locations.items() if where == path]
        try:
            files |= _decompress(path, names)
        except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError) as error:
            raise Damaged(path, f"cannot be read ({error})") from error
        for name in names:
            digest = hashlib.sha256(files[name]).hexdigest()
            if digest != source.content[name]:
                raise Damaged(path, f"does not hold the known {name} (SHA-256 {digest}, not {source.content[name]})")
    return files


def _decompress(path: Path, names: list[str]) -> dict[str, bytes]:
    """In memory: pooch's processors write what they unpack beside the file, in folders that may be read-only."""
    if path.name.endswith(".tar.gz"):
        # One pass over the archive: a seek in a gzip stream starts again from its beginning.
        with tarfile.open(path, "r:gz") as archive:
            members = ((Path(member.name).name, archive.extractfile(member)) for member in archive if member.isfile())
            content = {name: stream.read() for name, stream in members if name in names and stream is not None}
        return {name: content[name] for name in names}
    raw = path.read_bytes()
    return {names[0]: gzip.decompress(raw) if path.suffix == ".gz" else raw}


def _download(source: Source, target: Path) -> None:
    import pooch

    for name in source.downloads:
        if (target / name).exists():
            continue
        try:
            # No hash of the file itself: its content is checked when it is read.
            pooch.retrieve(source.url + name, None, fname=name, path=target, progressbar=True)
        except OSError as error:  # requests' errors are OSErrors too
            raise FileNotFoundError(
                f"{target / name} does not exist and {source.url + name} cannot be downloaded "
                f"({type(error).__name__}): put the file there, or set FGA_DATA to a folder that has it under "
                f"{source.folders[0]}"
            ) from error
