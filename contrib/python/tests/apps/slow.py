"""An application whose import takes a second."""

import sys
import time

print("importing", file=sys.stderr)
time.sleep(1)

from plain import app, application  # noqa: E402, F401
