"""`serve` with several workers and the store in memory, which the settings refuse: `-m tests.whole.several FILE N`.

The tests that run it are about processes, not about limits. While there is a file `FILE.broken` workers cannot start;
with a file `FILE.impatient` they are taken for stuck after two seconds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import config_file, server
from proxy.app import App
from proxy.config_file import ConfigurationError
from proxy.workers import arbiter

if TYPE_CHECKING:
    from proxy.settings import Settings

path, workers = Path(sys.argv[1]), int(sys.argv[2])
sound = App.open
if path.with_suffix(".impatient").exists():
    vars(arbiter)["STUCK_S"] = 2


def load() -> Settings:
    return config_file.load(path, os.environ, {}).model_copy(update={"workers": workers})


async def breakable(app: App) -> None:
    if path.with_suffix(".broken").exists():
        raise OSError("broken by the test")
    await sound(app)


App.open = breakable  # type: ignore[assignment,method-assign]  # the test's own process

try:
    sys.exit(server.run(load))
except ConfigurationError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(2)
