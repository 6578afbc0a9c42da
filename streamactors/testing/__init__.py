"""How it is proved: simulation, clocks, disks, scripted sources."""
