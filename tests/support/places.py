"""Names that nothing that is published may contain: a package registry's, a place on a machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.support.database import ROOT

# Split, because this file is tracked, too.
HOSTS = ("pypi" + ".org", "python" + "hosted.org", "npm" + "js.", "crates" + ".io", "golang" + ".org")
REGISTRY = re.compile("|".join(map(re.escape, (*HOSTS, "/simple" + "/"))), re.IGNORECASE)

HERE = {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix} - {"/", "/usr", "/usr/local", "/app"}
PLACE = re.compile(
    "|".join(
        (
            *(re.escape(place) + r"(?![\w.-])" for place in sorted(HERE)),
            r"(?<![\w.}])/(?:work|root|Users|home)/\w",
            r"\b[A-Z]:\\\\?\w",
            r"(?<!\w)/tmp/\w",
        )
    )
)
