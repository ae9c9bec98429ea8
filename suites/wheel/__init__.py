"""The package as a user gets it: a wheel in an empty environment, without a checkout around."""
