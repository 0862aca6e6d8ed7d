"""Learning a dictionary from activation rows."""
