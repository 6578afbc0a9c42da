"""Who runs: mailboxes, actors, restarts, supervision; knows no disk."""
