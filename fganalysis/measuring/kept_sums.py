"""Sums over the guesses that were drawn so far, in a file: a run that was cut off goes on, and a longer one continues.

A sample needs of its guesses the sums over each group and two numbers a guess and layer (`guess_sums`). With those of
complete blocks in a file, more blocks can be added, and the result is bit-identical to that of all guesses drawn at
once. The file is safetensors, written whole or not at all, with a checksum; nothing in it is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from fganalysis.estimators import stable_name
from fganalysis.measuring.direct import DirectSample
from fganalysis.measuring.group_ranges import GroupRange
from fganalysis.measuring.guess_sums import Kept
from fganalysis.results import store

SECONDS_BETWEEN = 60.0  # Between two writes of a run that goes on.


def made_of(sample: DirectSample) -> dict[str, object]:
    """What sums over guesses depend on, besides the snapshot, as JSON has it."""
    return {
        "seed": sample.seed,
        "step": sample.snapshot.step,
        "estimator": stable_name(sample.estimator),
        "block_size": sample.block_size,
        "shapes": [list(part.shape) for sums in sample.pattern.all_sums() for part in sums],
    }


@dataclass(frozen=True)
class KeptSums:
    """The file of one sample.

    Attributes:
        path: of the file. made_of: what the sums depend on, in a line of JSON; sums of other things are not used.
    """

    path: Path
    made_of: str

    @classmethod
    def of(cls, path: str | Path, sample: DirectSample, groups: GroupRange) -> KeptSums:
        """The file for the sums of some groups of a sample."""
        digest = hashlib.sha256()
        snapshot = sample.snapshot
        for tensor in (*snapshot.gradients, *snapshot.weight_gradients, *(layer.weight for layer in snapshot.weights)):
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        here = {"groups": [groups.first, groups.stop, groups.n_groups], "snapshot": digest.hexdigest()}
        return cls(Path(path), json.dumps(made_of(sample) | here | store.provenance(), sort_keys=True))

    def read_into(self, kept: Kept) -> int:
        """Fills in what the file holds, and returns the number of its guesses; 0 where there is no such file.

        Where there are more guesses than are asked for, nothing is filled in: sums cannot be taken apart.

        A file that is damaged, or holds sums of something else, is renamed, never deleted, and named in the log.

        Raises:
            ValueError: a file that cannot be read, as it may be whole.
        """
        if not self.path.exists():
            return 0
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}") from error
        wrong, tensors = self._checked(content)
        if wrong:
            aside = store.set_aside(self.path)
            logging.getLogger(__name__).warning("%s %s; the file is now %s", self.path, wrong, aside.name)
            return 0
        n_guesses: int = tensors["inner_products"].shape[-1]
        if n_guesses <= kept.scalars.inner_products.shape[-1]:
            kept.take(tensors)
        return n_guesses

    def _checked(self, content: bytes) -> tuple[str, dict[str, Tensor]]:
        """What is wrong with the bytes of a file, or nothing; and its tensors."""
        checksum, _, rest = content.partition(b"\n")
        if checksum.decode(errors="replace") != hashlib.sha256(rest).hexdigest():
            return "is damaged, by its checksum", {}
        made_of, _, tensors = rest.partition(b"\n")
        if made_of.decode() != self.made_of:
            theirs, ours = json.loads(made_of), json.loads(self.made_of)
            differing = [name for name in ours if theirs.get(name) != ours[name]]
            return f"holds the sums of another sample (other {', '.join(differing)})", {}
        return "", load(tensors)

    def write(self, kept: Kept, n_guesses: int) -> None:
        """Writes the sums of the first guesses, whose blocks are complete.

        Raises:
            OSError: a file that cannot be written; an earlier one is still there.
        """
        rest = self.made_of.encode() + b"\n" + save(kept.tensors(n_guesses))
        store.write_bytes(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest, self.path)
