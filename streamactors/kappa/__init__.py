"""How is it mended? Compared with another version, promoted, explained."""
