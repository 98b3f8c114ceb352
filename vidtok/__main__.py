"""`python -m vidtok` is the command `vidtok`, and `torchrun -m vidtok` several of it."""

import sys

from vidtok.cli.main import main

sys.exit(main())
