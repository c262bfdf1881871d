"""The tests, in rooms as the package has them; here the paths that many of them use."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "unlearn_metrics" / "demo"
CHECKPOINTS, DATA = DEMO / "checkpoints", DEMO / "data"
SHARED = Path(os.environ.get("UNLEARN_SHARED", ROOT.parent / "shared"))  # lies beside the project, or nowhere
