"""The helpers beside the tests of faults, and the text and the run that all tests share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
