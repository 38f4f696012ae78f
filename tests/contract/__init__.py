"""What every sink keeps, shown for each of them, against the real thing."""
