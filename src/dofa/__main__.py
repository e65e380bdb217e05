"""`python -m dofa`, which is how torchrun starts the command line."""

import sys

from dofa.cli import main

sys.exit(main())
