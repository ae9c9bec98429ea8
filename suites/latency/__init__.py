"""The timers, with a clock of the test's own; and real time on this machine."""
