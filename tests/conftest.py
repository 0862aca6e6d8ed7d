"""Settings that all tests share."""

from __future__ import annotations

import torch

# Several test processes share the machine; one thread each is faster than many that wait for one another.
torch.set_num_threads(1)
