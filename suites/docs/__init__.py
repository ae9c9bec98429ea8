"""README and documentation: commands are run, links lead somewhere, figures are those of the baselines."""
