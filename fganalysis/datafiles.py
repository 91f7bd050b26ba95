"""The files of public datasets: where they may lie, what they must contain, and their download when they are nowhere.

The folders searched, in this order: `FGA_DATA`, the user's cache folder for fganalysis, `./data` (where torchvision's
users have them) and the folder of Debian's dataset packages. Content is checked against known hashes, wherever it is
from. What is downloaded is kept in `FGA_DATA` where that is set, in the user's cache folder otherwise.
"""

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """Where the files of a dataset may lie below a data folder, the md5 of their content, and where they come from.

    `content` maps the plain name of a file to the md5 of what is in it once decompressed: distributors recompress.
    `downloads` maps the name of each compressed file at `url` to the md5 of that file itself.
    """

    folders: tuple[str, ...]
    content: Mapping[str, str]
    url: str
    downloads: Mapping[str, str]


# The md5 of compressed MNIST and Fashion-MNIST files are those in torchvision 0.28's datasets/mnist.py, that of the
# CIFAR-10 archive is the one printed on the dataset's page. Content: Fashion-MNIST as computed from Debian's package
# dataset-fashion-mnist 0.0~git20200523.55506a9-1; MNIST and CIFAR-10 as listed by several independent public projects,
# which agree (rai-project/dldataset is one of those for CIFAR-10).
SOURCES: Mapping[str, Source] = {
    "fashion_mnist": Source(
        folders=("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
        content={
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        downloads={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "mnist": Source(
        folders=("mnist", "MNIST/raw"),
        content={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        downloads={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "cifar10": Source(
        folders=("cifar10", "cifar-10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "."),
        content={
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        },
        url="https://www.cs.toronto.edu/~kriz/",
        downloads={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
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

    Raises
    ------
    ValueError
        If a file found cannot be decompressed, or it or the one downloaded has another md5.
    FileNotFoundError
        If a file is in no folder and the download fails.
    """
    folders = data_folders()
    files: dict[str, bytes] = {}
    for folder in folders:
        for below in source.folders:
            files = read_folder(folder / below, source) | files
            if len(files) == len(source.content):
                return files
    target = folders[0] / source.folders[0]
    _download(source, target)
    return read_folder(target, source)


def read_folder(folder: Path, source: Source) -> dict[str, bytes]:
    """Read those files of a source that a folder holds, plain, gzipped or in the source's archive, and check them.

    Raises
    ------
    ValueError
        If a file found cannot be decompressed or its content has another md5.
    """
    found: dict[str, Path] = {}
    for name in source.content:
        archives = [download for download in source.downloads if download.endswith(".tar.gz")]
        paths = [folder / candidate for candidate in (name, f"{name}.gz", *archives)]
        present = [path for path in paths if path.is_file()]
        if present:
            found[name] = present[0]
    files: dict[str, bytes] = {}
    for path in sorted(set(found.values())):
        names = [name for name, where in found.items() if where == path]
        try:
            files |= _decompress(path, names)
        except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it, or replace it by an intact copy") from error
        for name in names:
            digest = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
            if digest != source.content[name]:
                raise ValueError(
                    f"{path} does not hold the known {name} (md5 {digest}, not {source.content[name]}): "
                    "delete it, or replace it by an intact copy"
                )
    return files


def _decompress(path: Path, names: list[str]) -> dict[str, bytes]:
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

    for name, digest in source.downloads.items():
        try:
            pooch.retrieve(source.url + name, f"md5:{digest}", fname=name, path=target, progressbar=True)
        except OSError as error:  # requests' errors are OSErrors too
            raise FileNotFoundError(
                f"{target / name} does not exist and {source.url + name} cannot be downloaded "
                f"({type(error).__name__}): put the file there, or set FGA_DATA to a folder that has it under "
                f"{source.folders[0]}"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{source.url + name} gives another file than the known one (md5 {digest}): put an intact copy at "
                f"{target / name}"
            ) from error
