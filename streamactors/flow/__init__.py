"""What happens to records: sequencing, operators, windows, and the stage that hosts them."""
