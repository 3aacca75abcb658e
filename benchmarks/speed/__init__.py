"""Times and memory of the library, as ratios to what it is compared with."""
