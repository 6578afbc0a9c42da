"""Speed against others who do the same work: see "Peers" in ../README.md."""
