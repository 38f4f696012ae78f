"""What tests need: `capture()` for the events of a block, a scripted transport, and a proxy that breaks connections."""

from __future__ import annotations

from streamll.testing.capture import Captured, capture

__all__ = ["Captured", "capture"]
