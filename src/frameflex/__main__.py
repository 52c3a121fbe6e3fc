"""``python -m frameflex``."""

import sys

from frameflex.cli import main

sys.exit(main())
