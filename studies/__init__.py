"""The studies: each is a folder that `python -m studies.NAME` runs."""

import os
import signal
import sys
import threading


def _end(number: int, frame: object) -> None:
    os._exit(128 + number)


# `python -m studies.NAME` imports this package first, then for seconds its libraries, in which Ctrl-C would end in a
# traceback. Once the settings are read, `studies.kit.command_line` decides how a study ends.
if sys.argv[:1] == ["-m"] and threading.current_thread() is threading.main_thread():
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _end)
