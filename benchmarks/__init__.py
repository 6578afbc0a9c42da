"""What the speed of StreamActors is, measured: see README.md here."""
