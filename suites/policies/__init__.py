"""Every policy of the suite against the first tokens and the newest, or random ones, at equal memory."""
