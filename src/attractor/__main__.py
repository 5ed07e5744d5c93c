"""Run the command line as ``python -m attractor`` or ``torchrun -m attractor``."""

import sys

from attractor.cli import main

sys.exit(main())
