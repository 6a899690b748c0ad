"""`python -m branchnet` is the command `branchnet`."""

import sys

from branchnet.cli import main

sys.exit(main())
