"""`python -m fsm_train` is `fsm-train`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
