from __future__ import annotations

import sys

from matchwright.engine.cli import main

sys.exit(main())
