"""The premise check: a quick search of two halves, what it says of the premises, and its calibration."""
