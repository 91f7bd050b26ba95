"""What the file of a result may hold: groups below each other, plain arrays in them, and nothing that leads elsewhere.

HDF5 follows what a file says: a link that leads back into its own group is a tree without end, a virtual dataset and an
external link read other files of the machine, and an array of a few bytes may claim terabytes. All of that is looked
for by h5py's lowest calls, which follow nothing, before the file is opened as a result.
"""

from __future__ import annotations

import io

import h5py

MOST_GROUPS_IN_A_FILE = 2**14  # An export holds one for every node of every cell.
MOST_ARRAYS_IN_A_FILE = 2**18
DEEPEST_GROUP = 16
LARGEST_RATIO = 1100  # Deflate makes at most 1032 bytes of one.
SLACK = 2**20  # Bytes of an array that may be all fill value.


class Unsound(ValueError):
    """A file that holds what no result does; the message says what."""


def check_sound(content: bytes) -> None:
    """Raises Unsound for what no result holds, and whatever HDF5 raises for what it cannot open."""
    with h5py.File(io.BytesIO(content), "r") as file:
        waiting, seen, n_arrays = [(file.id, 0)], {_address(file.id)}, 0
        while waiting:
            group, depth = waiting.pop()
            for name in group:
                kind = group.links.get_info(name).type
                if kind != h5py.h5l.TYPE_HARD:
                    raise Unsound("it has a link to another place or file")
                if h5py.h5o.get_info(group, name).type == h5py.h5o.TYPE_GROUP:
                    below = h5py.h5g.open(group, name)
                    if _address(below) in seen:
                        raise Unsound("a group is within itself, or in two places")
                    seen.add(_address(below))
                    waiting.append((below, depth + 1))
                    if len(seen) > MOST_GROUPS_IN_A_FILE or depth >= DEEPEST_GROUP:
                        raise Unsound(
                            f"it has more than {MOST_GROUPS_IN_A_FILE} groups, or groups more than {DEEPEST_GROUP} deep"
                        )
                elif h5py.h5o.get_info(group, name).type == h5py.h5o.TYPE_DATASET:
                    n_arrays += 1
                    if n_arrays > MOST_ARRAYS_IN_A_FILE:
                        raise Unsound(f"it has more than {MOST_ARRAYS_IN_A_FILE} arrays")
                    _check_array(h5py.h5d.open(group, name))


def _check_array(array: h5py.h5d.DatasetID) -> None:
    made = array.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        raise Unsound("an array lies in another file")
    claimed = array.get_space().get_simple_extent_npoints() * array.get_type().get_size()
    if claimed > LARGEST_RATIO * array.get_storage_size() + SLACK:
        raise Unsound("an array claims more numbers than the file can hold")


def _address(group: h5py.h5g.GroupID) -> tuple[int, int]:
    info = h5py.h5o.get_info(group)
    return info.fileno, info.addr
