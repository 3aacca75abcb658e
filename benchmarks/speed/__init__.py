"""How fast the library is, as ratios to what it is compared with."""
