"""``python -m attractor``: the command line, as ``torchrun -m attractor`` starts it."""

import sys

from attractor.cli import main

sys.exit(main())
